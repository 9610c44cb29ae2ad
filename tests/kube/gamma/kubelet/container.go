package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// someUser is who runs containers that do not say.
const someUser = 2000

// processes are what a container consists of here, not started.
func (k *kubelet) processes(p *pod, c *corev1.Container) ([]*exec.Cmd, error) {
	env, err := p.variables(c)
	if err != nil {
		return nil, err
	}
	switch {
	case len(c.Command) == 1 && c.Command[0] == "/usr/local/bin/remora":
		process := p.process(c.SecurityContext, append([]string{k.remora}, p.arguments(c, env)...))
		for name, value := range env {
			process.Env = append(process.Env, name+"="+value)
		}
		return []*exec.Cmd{process}, nil
	case strings.Contains(c.Image, "/echo-advanced:"):
		return k.servers(p, c), nil
	}
	return nil, fmt.Errorf("container %s: image %s is not known here", c.Name, c.Image)
}

// servers are the servers of echo-advanced that cases call, each an echo-basic: those of HTTP and gRPC. TLS and TCP are not served.
func (k *kubelet) servers(p *pod, c *corev1.Container) []*exec.Cmd {
	own := []string{"NAMESPACE=" + p.object.Namespace, "POD_NAME=" + p.object.Name, "H2C_PORT=0"}
	var tls []string
	for _, argument := range c.Args {
		if port, found := strings.CutPrefix(argument, "--tls="); found {
			tls = append(tls, port)
		}
	}
	var all []*exec.Cmd
	for _, argument := range c.Args {
		kind, port, _ := strings.Cut(argument, "=")
		env := append(slices.Clone(own), "HTTP_PORT="+port)
		switch {
		case kind == "--port" && !slices.Contains(tls, port):
		case kind == "--grpc":
			env = append(env, "GRPC_ECHO_SERVER=1")
		default:
			continue
		}
		process := p.process(c.SecurityContext, []string{k.echo})
		process.Env = append(process.Env, env...)
		all = append(all, process)
	}
	return all
}

// process runs `words` in the pod's network, as the user and with the capabilities that `security` gives.
func (p *pod) process(security *corev1.SecurityContext, words []string) *exec.Cmd {
	user, capabilities := int64(someUser), "-all"
	if security != nil {
		if security.RunAsUser != nil {
			user = *security.RunAsUser
		}
		if security.Capabilities != nil {
			for _, name := range security.Capabilities.Add {
				capabilities += ",+" + strings.ToLower(string(name))
			}
		}
	}
	id := strconv.FormatInt(user, 10)
	arguments := []string{
		"netns", "exec", p.network, "setpriv", "--reuid", id, "--regid", id, "--clear-groups",
		"--bounding-set=" + capabilities, "--no-new-privs",
	}
	process := exec.Command("ip", append(arguments, words...)...)
	process.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return process
}

// variables are those of a container.
func (p *pod) variables(c *corev1.Container) (map[string]string, error) {
	fields := map[string]string{
		"metadata.name": p.object.Name, "metadata.namespace": p.object.Namespace, "metadata.uid": string(p.object.UID),
		"spec.serviceAccountName": p.object.Spec.ServiceAccountName, "status.podIP": p.address, "status.podIPs": p.address,
	}
	env := map[string]string{}
	for _, variable := range c.Env {
		if variable.ValueFrom == nil {
			env[variable.Name] = expand(variable.Value, env)
			continue
		}
		field := variable.ValueFrom.FieldRef
		if field == nil {
			return nil, fmt.Errorf("container %s: variable %s is of no field", c.Name, variable.Name)
		}
		value, known := fields[field.FieldPath]
		if !known {
			return nil, fmt.Errorf("container %s: field %s is not known here", c.Name, field.FieldPath)
		}
		env[variable.Name] = value
	}
	return env, nil
}

// arguments have variables replaced, and paths in volumes are paths on this machine.
func (p *pod) arguments(c *corev1.Container, env map[string]string) []string {
	var all []string
	for _, argument := range c.Args {
		argument = expand(argument, env)
		for _, mount := range c.VolumeMounts {
			if rest, found := strings.CutPrefix(argument, mount.MountPath+"/"); found {
				argument = filepath.Join(p.volume(mount.Name), rest)
				break
			}
		}
		all = append(all, argument)
	}
	return all
}

var reference = regexp.MustCompile(`\$\$|\$\([A-Za-z0-9_.-]+\)`)

// expand replaces $(NAME) as Kubernetes does: what is not known stays, and $$ is $.
func expand(text string, env map[string]string) string {
	return reference.ReplaceAllStringFunc(text, func(found string) string {
		if found == "$$" {
			return "$"
		}
		if value, known := env[found[2:len(found)-1]]; known {
			return value
		}
		return found
	})
}

func (p *pod) volume(name string) string {
	return filepath.Join(p.folder, "volumes", name)
}

// volumes makes those of the sidecar: they belong to its user.
func (k *kubelet) volumes(ctx context.Context, p *pod) error {
	owners := map[string]int{}
	for _, c := range slices.Concat(p.object.Spec.InitContainers, p.object.Spec.Containers) {
		for _, mount := range c.VolumeMounts {
			if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
				owners[mount.Name] = int(*c.SecurityContext.RunAsUser)
			}
		}
	}
	for _, volume := range p.object.Spec.Volumes {
		// What Kubernetes adds for programs that ask its API: none does.
		if strings.HasPrefix(volume.Name, "kube-api-access-") {
			continue
		}
		files, err := k.files(ctx, p, volume)
		if err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
		owner, known := owners[volume.Name]
		if !known {
			owner = someUser
		}
		folder := p.volume(volume.Name)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		for name, text := range files {
			path := filepath.Join(folder, name)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				return err
			}
			if err := os.Chown(path, owner, owner); err != nil {
				return err
			}
		}
		if err := os.Chown(folder, owner, owner); err != nil {
			return err
		}
	}
	return os.MkdirAll(p.folder, 0o755)
}

// files are what a volume has in it at first.
func (k *kubelet) files(ctx context.Context, p *pod, volume corev1.Volume) (map[string]string, error) {
	switch {
	case volume.EmptyDir != nil:
		return nil, nil
	case volume.ConfigMap != nil:
		return k.configured(ctx, p.object.Namespace, volume.ConfigMap.Name)
	case volume.Projected != nil:
		files := map[string]string{}
		for _, source := range volume.Projected.Sources {
			if source.ServiceAccountToken == nil {
				return nil, fmt.Errorf("a source that is not known here")
			}
			token, err := k.token(ctx, p, source.ServiceAccountToken)
			if err != nil {
				return nil, err
			}
			files[source.ServiceAccountToken.Path] = token
		}
		return files, nil
	}
	return nil, fmt.Errorf("a kind that is not known here")
}

// configured waits for a ConfigMap, which may be made after the pod.
func (k *kubelet) configured(ctx context.Context, namespace, name string) (map[string]string, error) {
	for {
		found, err := k.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return maps.Clone(found.Data), nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// token asks for a token of the pod's account, bound to the pod.
func (k *kubelet) token(ctx context.Context, p *pod, wanted *corev1.ServiceAccountTokenProjection) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{wanted.Audience}, ExpirationSeconds: wanted.ExpirationSeconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			Kind: "Pod", APIVersion: "v1", Name: p.object.Name, UID: p.object.UID,
		},
	}}
	accounts := k.client.CoreV1().ServiceAccounts(p.object.Namespace)
	made, err := accounts.CreateToken(ctx, p.object.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return made.Status.Token, nil
}

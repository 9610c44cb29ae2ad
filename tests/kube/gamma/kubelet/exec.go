package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// handler is what the API server asks: `kubectl exec`.
func (k *kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		options, err := remotecommand.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		name := r.PathValue("namespace") + "/" + r.PathValue("pod")
		command := r.URL.Query()["command"]
		remotecommand.ServeExec(w, r, k, name, "", r.PathValue("container"), command, options, time.Hour,
			remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	})
	return mux
}

// ExecInContainer runs `client` of the image echo-advanced in a pod. Nothing else is run for whoever asks.
func (k *kubelet) ExecInContainer(
	ctx context.Context, name, _, container string, command []string, _ io.Reader, out, problems io.WriteCloser, _ bool,
	_ <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	for _, stream := range []io.WriteCloser{out, problems} {
		if stream != nil {
			defer stream.Close()
		}
	}
	k.lock.Lock()
	p := k.running[name]
	k.lock.Unlock()
	if p == nil {
		return fmt.Errorf("pod %s does not run", name)
	}
	var security *corev1.SecurityContext
	for _, c := range p.object.Spec.Containers {
		if c.Name == container && strings.Contains(c.Image, "/echo-advanced:") && len(command) > 0 && command[0] == "client" {
			security = c.SecurityContext
			if security == nil {
				security = &corev1.SecurityContext{}
			}
		}
	}
	if security == nil {
		return fmt.Errorf("container %s has no command %q here", container, command)
	}
	if err := k.names(ctx, p); err != nil {
		return err
	}
	process := p.process(security, append([]string{k.caller}, command[1:]...))
	// Names are those of `names`, without asking anybody.
	process.Env = append(process.Env, "GODEBUG=netdns=go")
	process.Stdout, process.Stderr = out, problems
	err := process.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return utilexec.CodeExitError{Err: err, Code: ended.ExitCode()}
	}
	return err
}

// names writes what the cluster's DNS would say to a program of the pod: Services, by their names.
func (k *kubelet) names(ctx context.Context, p *pod) error {
	services, err := k.client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	text := "127.0.0.1 localhost\n"
	for _, service := range services.Items {
		if service.Spec.ClusterIP == "" || service.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		long := service.Name + "." + service.Namespace
		text += fmt.Sprintf("%s %s %s.svc %s.svc.cluster.local", service.Spec.ClusterIP, long, long, long)
		if service.Namespace == p.object.Namespace {
			text += " " + service.Name
		}
		text += "\n"
	}
	// Several are asked at a time: each finds a whole file.
	file, err := os.CreateTemp(settings, ".hosts-")
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	err = errors.Join(err, file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(settings, p.network, "hosts"))
	}
	return err
}

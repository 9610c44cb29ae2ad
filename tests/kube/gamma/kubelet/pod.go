package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// startupTime is how long a sidecar may take.
const startupTime = 2 * time.Minute

// pod is one that has a network.
type pod struct {
	object *corev1.Pod
	// network is the name of its network namespace.
	network string
	address string
	// folder has its volumes, and what its containers write.
	folder string
}

// start does all that makes a pod ready; `number` is its own.
func (k *kubelet) start(ctx context.Context, object *corev1.Pod, number int) error {
	p := &pod{
		object:  object,
		network: fmt.Sprintf("pod%d", number),
		// The first address is the node's.
		address: fmt.Sprintf("10.244.0.%d", number+1),
		folder:  filepath.Join(k.folder, object.Namespace, object.Name),
	}
	if number > 250 {
		return fmt.Errorf("the network of pods is full")
	}
	target := corev1.ObjectReference{Kind: "Node", Name: nodeName}
	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: object.Name, Namespace: object.Namespace}, Target: target}
	if err := k.client.CoreV1().Pods(object.Namespace).Bind(ctx, binding, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := p.connect(number); err != nil {
		return err
	}
	// The mesh knows a pod by its address, before its sidecar asks for anything.
	if err := k.report(ctx, p, false); err != nil {
		return err
	}
	if err := k.volumes(ctx, p); err != nil {
		return err
	}
	for i := range object.Spec.InitContainers {
		if err := k.initial(ctx, p, &object.Spec.InitContainers[i]); err != nil {
			return err
		}
	}
	for i := range object.Spec.Containers {
		if _, err := k.begin(p, &object.Spec.Containers[i]); err != nil {
			return err
		}
	}
	k.lock.Lock()
	k.running[object.Namespace+"/"+object.Name] = p
	k.lock.Unlock()
	return k.report(ctx, p, true)
}

// settings has, by network namespaces, what `ip netns exec` puts over /etc.
const settings = "/etc/netns"

// connect makes the network namespace, with a cable to the bridge. There is no name server: programs are told so at once.
func (p *pod) connect(number int) error {
	folder := filepath.Join(settings, p.network)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "resolv.conf"), []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		return err
	}
	script := fmt.Sprintf(`ip netns add %[1]s && ip link add veth%[2]d type veth peer name eth0 netns %[1]s &&
		ip link set veth%[2]d master cni0 up && ip -n %[1]s link set lo up && ip -n %[1]s addr add %[3]s/24 dev eth0 &&
		ip -n %[1]s link set eth0 up && ip -n %[1]s route add default via 10.244.0.1`, p.network, number, p.address)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("its network: %w: %s", err, out)
	}
	return nil
}

// report writes the pod's status.
func (k *kubelet) report(ctx context.Context, p *pod, ready bool) error {
	phase, is := corev1.PodPending, corev1.ConditionFalse
	if ready {
		phase, is = corev1.PodRunning, corev1.ConditionTrue
	}
	var conditions []map[string]any
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		conditions = append(conditions, map[string]any{"type": kind, "status": is})
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{
		"phase": phase, "podIP": p.address, "podIPs": []map[string]any{{"ip": p.address}}, "conditions": conditions,
	}})
	if err != nil {
		return err
	}
	pods := k.client.CoreV1().Pods(p.object.Namespace)
	_, err = pods.Patch(ctx, p.object.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// initial runs an init container to its end or, if it is a sidecar, until its startup probe passes.
func (k *kubelet) initial(ctx context.Context, p *pod, c *corev1.Container) error {
	ended, err := k.begin(p, c)
	if err != nil {
		return err
	}
	if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		if err := <-ended; err != nil {
			return fmt.Errorf("init container %s: %w", c.Name, err)
		}
		return nil
	}
	if c.StartupProbe == nil || c.StartupProbe.HTTPGet == nil {
		return nil
	}
	probe := c.StartupProbe.HTTPGet
	url := fmt.Sprintf("http://%s:%s%s", p.address, probe.Port.String(), probe.Path)
	client := &http.Client{Timeout: 3 * time.Second}
	for deadline := time.Now().Add(startupTime); ; {
		if answer, err := client.Get(url); err == nil {
			answer.Body.Close()
			if answer.StatusCode < 400 {
				return nil
			}
		}
		select {
		case err := <-ended:
			return fmt.Errorf("sidecar %s ended: %v", c.Name, err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("sidecar %s: no startup in %v", c.Name, startupTime)
		}
	}
}

// begin starts the processes of a container. The channel tells the end of the first of them that ends.
func (k *kubelet) begin(p *pod, c *corev1.Container) (<-chan error, error) {
	processes, err := k.processes(p, c)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(p.folder, c.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	ended := make(chan error, len(processes))
	for _, process := range processes {
		process.Stdout, process.Stderr = file, file
		if err := k.run(process); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		go func() {
			defer k.alive.Done()
			err := process.Wait()
			log.Printf("pod %s/%s: container %s ended: %v", p.object.Namespace, p.object.Name, c.Name, err)
			ended <- err
		}()
	}
	return ended, nil
}

// run starts a process, which `end` will find.
func (k *kubelet) run(process *exec.Cmd) error {
	k.lock.Lock()
	defer k.lock.Unlock()
	if err := process.Start(); err != nil {
		return err
	}
	k.alive.Add(1)
	k.begun = append(k.begun, process.Process)
	return nil
}

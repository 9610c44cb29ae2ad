// A kubelet for the mesh conformance cases: what they need of one, on this machine, without containers.
//
// A pod is a network namespace on the bridge cni0. Its containers are processes in it, with the arguments, variables, volumes, user and
// capabilities that the manifest gives them; images are programs that the command line names. Init containers run first, and a sidecar is
// waited for as its startup probe says. `exec` runs the command `client` of the image echo-advanced, and nothing else. Pods end together,
// when this does.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// nodeName is the name of the one node.
const nodeName = "node"

// kubelet has the pods of the node.
type kubelet struct {
	client kubernetes.Interface
	// folder has a folder for each pod.
	folder string
	// What images have in them.
	remora, echo, caller string

	lock sync.Mutex
	// taken are the pods that were seen, by their UID.
	taken map[types.UID]bool
	// running are those that have a network, by namespace and name.
	running map[string]*pod
	// begun are the processes of all of them.
	begun []*os.Process
	// alive are those that have not ended.
	alive sync.WaitGroup
}

func main() {
	k := &kubelet{taken: map[types.UID]bool{}, running: map[string]*pod{}}
	kubeconfig := flag.String("kubeconfig", "", "who this is at the API server")
	certificate := flag.String("certificate", "", "PEM, for 127.0.0.1")
	key := flag.String("key", "", "of the certificate")
	ca := flag.String("ca", "", "PEM: who signs the API server's client certificate")
	flag.StringVar(&k.folder, "folder", "", "for the files of pods")
	flag.StringVar(&k.remora, "remora", "", "the program of the image of sidecars")
	flag.StringVar(&k.echo, "echo", "", "the server of the image echo-advanced")
	flag.StringVar(&k.caller, "client", "", "the client of the image echo-advanced")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	if k.client, err = kubernetes.NewForConfig(config); err != nil {
		log.Fatal(err)
	}
	listener, err := listen(*certificate, *key, *ca)
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.Serve(listener, k.handler())) }()
	if err := k.register(ctx, listener.Addr().(*net.TCPAddr).Port); err != nil {
		log.Fatal(err)
	}
	k.watch(ctx)
	k.end()
}

// end kills every process that was begun, and waits for them.
func (k *kubelet) end() {
	k.lock.Lock()
	defer k.lock.Unlock()
	for _, process := range k.begun {
		// One that has ended already is not found.
		_ = process.Kill()
	}
	k.alive.Wait()
}

// listen takes the API server's connections, and nobody else's: what is asked here is done as root.
func listen(certificate, key, ca string) (net.Listener, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", ca)
	}
	// HTTP/1: a stream is an upgraded connection.
	return tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		NextProtos: []string{"http/1.1"},
	})
}

// register makes the node, with the port that the API server is to ask.
func (k *kubelet) register(ctx context.Context, port int) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName},
		Status: corev1.NodeStatus{
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}},
			Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	_, err := k.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	return err
}

// watch takes every pod, also those that are there already.
func (k *kubelet) watch(ctx context.Context) {
	for ctx.Err() == nil {
		pods, err := k.client.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{})
		if err != nil {
			log.Print(err)
			time.Sleep(time.Second)
			continue
		}
		for event := range pods.ResultChan() {
			if object, ok := event.Object.(*corev1.Pod); ok && event.Type != watch.Deleted {
				k.take(ctx, object)
			}
		}
	}
}

// take is the scheduler, too: who has no node comes here.
func (k *kubelet) take(ctx context.Context, object *corev1.Pod) {
	waits := object.Spec.NodeName == "" && object.Spec.SchedulerName == corev1.DefaultSchedulerName
	for _, volume := range object.Spec.Volumes {
		// For storage, which nobody gives here.
		waits = waits && volume.PersistentVolumeClaim == nil
	}
	k.lock.Lock()
	defer k.lock.Unlock()
	if !waits || k.taken[object.UID] {
		return
	}
	k.taken[object.UID] = true
	number := len(k.taken)
	go func() {
		if err := k.start(ctx, object, number); err != nil {
			log.Printf("pod %s/%s: %v", object.Namespace, object.Name, err)
		}
	}()
}

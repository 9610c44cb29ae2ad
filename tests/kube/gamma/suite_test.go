// Package gamma runs the Gateway API's conformance cases for meshes (GAMMA), as they are, at the cluster of KUBECONFIG.
package gamma

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/gateway-api/conformance"
	meshtests "sigs.k8s.io/gateway-api/conformance/tests/mesh"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// core are the features that no mesh may lack; a case that asks for others is extended.
var core = []features.FeatureName{features.SupportMesh, features.SupportHTTPRoute, features.SupportGRPCRoute}

// TestMesh runs every case of the module, with every feature that one of them asks for, and prints a line for each.
func TestMesh(t *testing.T) {
	require.NotEmpty(t, meshtests.MeshConformanceTests)
	options := conformance.DefaultOptions(t)
	options.ConformanceProfiles = []suite.ConformanceProfileName{
		suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName,
	}
	for _, test := range meshtests.MeshConformanceTests {
		options.SupportedFeatures = append(options.SupportedFeatures, test.Features...)
	}
	options.NamespaceLabels = map[string]string{"remora.dev/inject": "true"}
	// The cluster ends with the cases.
	options.CleanupBaseResources = false
	cases, err := suite.NewConformanceTestSuite(options)
	require.NoError(t, err)

	podsOfGateways(t, options.Clientset)
	cases.Setup(t, meshtests.MeshConformanceTests)
	require.NoError(t, cases.Run(t, told(meshtests.MeshConformanceTests)))
	report, err := cases.Report()
	require.NoError(t, err)
	for _, profile := range report.ProfileReports {
		fmt.Printf("%s of Gateway API %s, %s channel: core %s (%d passed, %d failed)", profile.Name, report.GatewayAPIVersion,
			report.GatewayAPIChannel, profile.Core.Result, profile.Core.Statistics.Passed, profile.Core.Statistics.Failed)
		if profile.Extended != nil {
			fmt.Printf(", extended %s (%d passed, %d failed)", profile.Extended.Result, profile.Extended.Statistics.Passed,
				profile.Extended.Statistics.Failed)
		}
		fmt.Println()
	}
}

// told are the same cases, each with a line when it has ended.
func told(tests []suite.ConformanceTest) []suite.ConformanceTest {
	tests = slices.Clone(tests)
	for i, test := range tests {
		var extended []string
		for _, feature := range test.Features {
			if !slices.Contains(core, feature) {
				extended = append(extended, string(feature))
			}
		}
		level := "core"
		if len(extended) > 0 {
			level = "extended: " + strings.Join(extended, ", ")
		}
		tests[i].Test = func(t *testing.T, s *suite.ConformanceTestSuite) {
			began := time.Now()
			// After its last part, which may run beside others.
			t.Cleanup(func() {
				result := "ok  "
				if t.Failed() {
					result = "FAIL"
				}
				fmt.Printf("%s  %s (%s), %.1f s\n", result, test.ShortName, level, time.Since(began).Seconds())
			})
			test.Test(t, s)
		}
	}
	return tests
}

// podsOfGateways makes what the suite waits for in namespaces of its cases for gateways: a pod that is not waited for any more. Nobody
// runs it. Later versions of the suite do not look there.
func podsOfGateways(t *testing.T, client kubernetes.Interface) {
	ctx := context.Background()
	for _, name := range []string{suite.AppBackendNamespace, suite.WebBackendNamespace} {
		_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		require.NoError(t, err)
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "done"},
			Spec: corev1.PodSpec{
				SchedulerName: "nobody",
				Containers:    []corev1.Container{{Name: "done", Image: "none"}},
			},
		}
		// A namespace has its account a moment later.
		require.Eventually(t, func() bool {
			made, err := client.CoreV1().Pods(name).Create(ctx, pod, metav1.CreateOptions{})
			if err == nil {
				pod = made
			}
			return err == nil
		}, time.Minute, 100*time.Millisecond, "a pod in %s", name)
		pod.Status.Phase = corev1.PodSucceeded
		_, err = client.CoreV1().Pods(name).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
		require.NoError(t, err)
	}
}

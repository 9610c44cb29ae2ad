#!/usr/bin/env bash
# `remora control --kubernetes` at a real API server: etcd, kube-apiserver and kube-controller-manager of Kubernetes, on loopback.
#
#   definitions   the schemas of our own kinds: they take what the examples say, refuse wrong types, and explain fields
#   injection     a Deployment of kubectl becomes pods with sidecars, by the webhook of deploy/kubernetes, with the rights of its RBAC
#   sources       Services, routes, policies and pods of the cluster are documents and instances with a status; REST does not change them
#   sidecar       the sidecar of an injected pod, with its own arguments and a service account's token, and how fast an edit of an
#                 HTTPRoute, the readiness of a pod and its end reach it
#   rotation      another root signs: what API servers and sidecars believe, and what the webhook shows
#   restarts      the control plane starts while the API server is away, and what changed meanwhile is taken
#   replicas      two control planes with one store in etcd, of which one reads, and the other one after it was killed
#   chart         the Helm chart is installed, upgraded and uninstalled, with the installer of its CNI plugin; with REMORA_HELM (tests/helm/setup.sh
#                 builds it)
#
#   REMORA=target/debug/remora GATEWAY_CRDS=target/gateway-crds.json tests/kube/run.sh
#
# GATEWAY_CRDS: what `cargo run -p remora-mesh --example gateway-crds` prints. setup.sh must have run. Prints a line for each check; the
# exit status is 0 when all passed. Everything that is started is ended by its process id, also after a failure.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${REMORA:?path of the binary remora}" "${GATEWAY_CRDS:?definitions of the Gateway API, see the head of this file}"
version=$(sed -n 's/^version=//p' "$here/setup.sh")
KUBERNETES=${KUBE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/remora/kubernetes-$version}
[ -x "$KUBERNETES/kube-controller-manager" ] || { echo "run $here/setup.sh first" >&2; exit 2; }
REMORA=$(realpath "$REMORA") GATEWAY_CRDS=$(realpath "$GATEWAY_CRDS")
export REMORA KUBERNETES GATEWAY_CRDS
exec python3 -B "$here/main.py" "$@"

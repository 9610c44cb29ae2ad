#!/usr/bin/env bash
# The Gateway API's own conformance cases for meshes (GAMMA), as its Go module has them, through real sidecars that the webhook injected.
#
#   REMORA=target/debug/remora tests/kube/gamma.sh                  every case
#   REMORA=target/debug/remora tests/kube/gamma.sh MeshBasic        one
#
# etcd, kube-apiserver and kube-controller-manager of Kubernetes, the Gateway API's definitions, `remora control --kubernetes`; the node is
# gamma/kubelet: pods are network namespaces, and containers processes. The cases (gamma/suite_test.go) run commands in pods by `exec`. The
# servers are the module's echo-basic; the client in the pods (gamma/client) prints what the cases read.
#
# Needs root, go and the programs of setup.sh; installs Debian packages by name. Prints a line for each case; the exit status is 0 when all
# passed. Everything runs in a network, mount and process namespace of its own, and ends with it: nothing of this machine's network changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${REMORA:?path of the binary remora}"
[ "$(id -u)" = 0 ] || { echo "gamma.sh: needs root, for network namespaces" >&2; exit 2; }
cache=${XDG_CACHE_HOME:-$HOME/.cache}/remora
version=$(sed -n 's/^version=//p' "$here/setup.sh")
KUBERNETES=${KUBE_DIR:-$cache/kubernetes-$version}
[ -x "$KUBERNETES/kube-controller-manager" ] || { echo "run $here/setup.sh first" >&2; exit 2; }
REMORA=$(realpath "$REMORA")
GAMMA=${GAMMA_DIR:-$cache/gamma}
target=$GAMMA
mkdir -p "$GAMMA"
. "$here/../install.sh"
packages iproute2 nftables util-linux openssl python3

# Their modules come from the Go module proxy, at the versions and sums of gamma/go.sum.
cd "$here/gamma"
nice -n 15 go build -trimpath -o "$GAMMA/" ./kubelet ./client sigs.k8s.io/gateway-api/conformance/echo-basic
nice -n 15 go test -c -trimpath -o "$GAMMA/suite" .
DEFINITIONS=$(go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd/standard
export REMORA KUBERNETES GAMMA DEFINITIONS
exec unshare --net --mount --pid --fork --kill-child --mount-proc python3 -B "$here/gamma.py" "$@"

#!/usr/bin/env bash
# Builds the Kubernetes of the checks from source: kube-apiserver and kube-controller-manager, as nobody packages them alone. They are
# kept in a cache directory and built once a version. Needs go; etcd and kubectl are Debian's etcd-server and kubernetes-client, which
# root installs here if they are missing. Prints the directory of the programs. GOFLAGS=-p=1 leaves other work on the machine its share;
# it takes some minutes of CPU.
set -euo pipefail
version=1.36.3
into=${KUBE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/remora/kubernetes-$version}

missing=()
command -v etcd >/dev/null || missing+=(etcd-server)
command -v kubectl >/dev/null || missing+=(kubernetes-client)
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "tests/kube/setup.sh: install ${missing[*]}" >&2; exit 1; }
    target=$into
    mkdir -p "$target"
    . "$(dirname "${BASH_SOURCE[0]}")/../install.sh"
    packages "${missing[@]}"
fi

if [ ! -x "$into/kube-apiserver" ] || [ ! -x "$into/kube-controller-manager" ]; then
    mkdir -p "$into/module"
    cd "$into/module"
    rm -f go.mod go.sum
    go mod init remora.dev/kubernetes-of-tests 2>/dev/null
    # Its own go.mod takes the libraries from a folder that the module does not have; the same libraries are modules of their own.
    own=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",\{0,1\}$/\1/p')
    cp "$own" go.mod
    go mod edit -module=remora.dev/kubernetes-of-tests -require="k8s.io/kubernetes@v$version"
    for library in $(sed -n 's,^\t\(k8s.io/[a-z-]*\) => ./staging/.*,\1,p' "$own"); do
        go mod edit -replace="$library=$library@v0.${version#1.}"
    done
    stamp=k8s.io/component-base/version
    minor=${version#1.}; minor=${minor%.*}
    flags="-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor"
    for program in kube-apiserver kube-controller-manager; do
        nice -n 15 go build -mod=mod -trimpath -ldflags "$flags" -o "$into/$program.new" "k8s.io/kubernetes/cmd/$program" >&2
        mv "$into/$program.new" "$into/$program"
    done
fi
echo "$into"

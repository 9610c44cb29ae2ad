#!/usr/bin/env bash
# Puts the program where it is shipped to, and runs it there: an empty root, as in an image; a root with nft; the Debian package,
# installed, updated and purged in a root of its own, whose proxy joins a control plane.
#
#   deploy/test.sh PROGRAM
#
# PROGRAM is what `deploy/static.sh remora` made. Runs as root; needs dpkg, lintian, systemd, util-linux, nftables, netbase, iproute2,
# curl and Python. Changes nothing outside of a temporary folder, is in network namespaces of its own, and leaves no process behind.
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
if [ "${1-}" != --inside ]; then
    program=$(realpath "${1:?the program}") work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for part in ${PARTS:-empty_root nft_root package join}; do
        # With the namespaces of processes and mounts ends whatever was started there.
        unshare --net --mount --pid --fork --kill-child --mount-proc bash "$self" --inside $part "$work" "$program"
        echo "$part: ok"
    done
    exit
fi
part=$2 work=$3 remora=$4
cd "$(dirname "$self")/.."
ip link set lo up

fail() { echo "FAILED: $*" >&2; exit 1; }
# says TEXT COMMAND…: the command writes TEXT, whatever its exit status.
says() {
    local text=$1 output; shift
    output=$("$@" 2>&1) || true
    grep -qF -- "$text" <<<"$output" || fail "$* does not say \"$text\" but: $output"
}
# soon COMMAND…: it succeeds within 20 s.
soon() {
    local end=$((SECONDS + 20))
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "not within 20 s: $*"; sleep 0.05; done
}

# Nothing but the program and its configuration: no libraries, no /etc, /dev or /proc. As a container runtime runs an image: user 1337, a root
# that is read-only, and a volume at /data.
empty_root() {
    local root=$work/empty
    ! readelf --program-headers "$remora" | grep -q INTERP || fail "$remora needs libraries: build it with deploy/static.sh"
    mkdir -p "$root/data"
    cp "$remora" deploy/test/image.yaml "$root"
    mount --bind "$root" "$root"
    mount -t tmpfs tmpfs "$root/data"
    chown 1337:1337 "$root/data"
    mount -o remount,bind,ro "$root"
    local image=(chroot --userspec=1337:1337 --groups= "$root" /remora)

    says "image.yaml: OK" "${image[@]}" proxy -c image.yaml --check
    "${image[@]}" proxy -c image.yaml --state-dir /data/proxy 2>"$work/empty.log" & local proxy=$!
    soon curl -fsS 127.0.0.1:15000/ready
    says "hello from an empty root" curl -sS 127.0.0.1:8080/
    says LIVE curl -sS 127.0.0.1:8080/local
    says "x-remora-reason: " curl -sSi 127.0.0.1:8080/unknown
    says "remora_build_info" curl -sS 127.0.0.1:15000/stats/prometheus
    kill $proxy && wait $proxy || fail "the proxy ends with $?: $(cat "$work/empty.log")"

    says "redirect to :15006" "${image[@]}" init --dry-run
    says "install the package nftables" "${image[@]}" init

    says "--data /elsewhere: " "${image[@]}" control --data /elsewhere
    "${image[@]}" control --data /data/control 2>"$work/control.log" & local control=$!
    soon "${image[@]}" status
    "${image[@]}" token create --service-account orders | grep -q '^remora-' || fail "no token"
    says "orders" "${image[@]}" token list
    kill $control && wait $control || fail "the control plane ends with $?: $(cat "$work/control.log")"
}

# The files of the image in which `remora init` runs.
nft_root() {
    local root=$work/nft
    deploy/nft-root.sh "$root"
    mkdir -p "$root/proc"
    mount -t proc proc "$root/proc"
    install -D "$remora" "$root/usr/local/bin/remora"
    # The self-test wants a route.
    ip link add one type veth peer name other
    ip link set one up
    ip link set other up
    ip address add 198.51.100.1/24 dev one
    ip route add default via 198.51.100.2
    local init=(chroot "$root" /usr/local/bin/remora init)
    "${init[@]}" >"$work/init.log" 2>&1 || fail "init: $(cat "$work/init.log")"
    says "redirect to :15001" nft list ruleset
    "${init[@]}" --clean >/dev/null
    [ -z "$(nft list ruleset)" ] || fail "rules are left: $(nft list ruleset)"
    # With routes, which ip makes.
    local routing; routing=$(ip -4 rule; ip -6 rule)
    "${init[@]}" --mode tproxy >"$work/init.log" 2>&1 || fail "init --mode tproxy: $(cat "$work/init.log")"
    says "tproxy to :15006" nft list ruleset
    says "iif lo lookup 15006" ip -4 rule
    says "127.0.0.1 was called by 192.0.2.1" cat "$work/init.log"
    "${init[@]}" --clean >/dev/null
    [ -z "$(nft list ruleset)" ] || fail "rules are left: $(nft list ruleset)"
    [ "$(ip -4 rule; ip -6 rule)" = "$routing" ] || fail "rules of routes are left: $(ip -4 rule; ip -6 rule)"
}

# dpkg in a root of its own: its scripts run here, with DPKG_ROOT.
packages() { dpkg --root="$work/deb" --force-script-chrootless --force-depends --log=/dev/null "$@" >"$work/dpkg.log" 2>&1 || fail "dpkg $*: $(cat "$work/dpkg.log")"; }
state() { dpkg-query --root="$work/deb" --show --showformat '${Status} ${Version}' remora; }

package() {
    local root=$work/deb deb newer unit check
    deb=$(deploy/deb/build.sh "$remora" "$work")
    lintian --allow-root --fail-on error,warning "$deb" || fail "lintian"
    mkdir -p "$root/var/lib/dpkg/"{info,updates} "$root/etc" "$root/usr/bin"
    touch "$root/var/lib/dpkg/status"

    packages --install "$deb"
    grep -q '^remora:x:1337:1337:' "$root/etc/passwd" || fail "no user 1337: $(cat "$root/etc/passwd")"
    [ -z "$(find "$root/etc/systemd" -name 'remora*' 2>/dev/null)" ] || fail "a unit is enabled"
    # What the units are ordered by.
    cp -R --no-clobber /lib/systemd/system/*.target /lib/systemd/system/*.slice "$root/lib/systemd/system"
    install -D /bin/sh "$root/bin/sh"
    for unit in "$root"/lib/systemd/system/remora-*.service; do
        systemd-analyze verify --man=no --root="$root" "${unit##*/}" || fail "${unit##*/}"
        systemd-analyze security --offline=true --threshold=30 --root="$root" "${unit##*/}" >"$work/security" ||
            fail "$(cat "$work/security")"
    done
    check=(chroot --userspec=1337:1337 "$root" /usr/bin/remora proxy --ca https://192.0.2.10:15012 --check -c)
    says "proxy.yaml: OK" "${check[@]}" /etc/remora/proxy.yaml

    # What a person wrote stays, in an update and when the package goes; it goes with `purge`.
    echo "# mine" >>"$root/etc/remora/proxy.yaml"
    newer=$(VERSION=99 deploy/deb/build.sh /bin/true "$work")
    packages --install "$newer"
    [ "$(state)" = "install ok installed 99" ] || fail "$(state)"
    grep -q "# mine" "$root/etc/remora/proxy.yaml" || fail "the update took a changed file away"
    packages --remove remora
    [ ! -e "$root/usr/bin/remora" ] && grep -q "# mine" "$root/etc/remora/proxy.yaml" || fail "remove took too much or too little"
    mkdir -p "$root/var/lib/remora" && touch "$root/var/lib/remora/identity.pem" "$root/etc/remora/token"
    packages --purge remora
    [ ! -e "$root/etc/remora" ] && [ ! -e "$root/var/lib/remora" ] || fail "purge left $(find "$root/etc/remora" "$root/var/lib/remora")"
    packages --install "$deb"
}

# unit NAME: becomes what the unit runs, as its user, with its files of variables.
unit() {
    local file=$work/deb/lib/systemd/system/$1.service name
    name=$(sed -n 's/^User=//p' "$file")
    set -a
    . "$work/deb/$(sed -n 's/^EnvironmentFile=-//p' "$file")"
    eval "exec chroot --userspec=$name:$name --groups= '$work/deb' $(sed -n 's/^ExecStart=//p' "$file")"
}

# docs/reference/vm.md, with its addresses and the package's files as they are.
join() {
    local root=$work/deb run=(chroot "$work/deb" /usr/bin/remora)
    ip address add 192.0.2.10/32 dev lo
    ip address add 192.0.2.20/32 dev lo
    install -d -o "$(sed -n 's/^remora-control:x:\([0-9]*\):.*/\1/p' "$root/etc/passwd")" "$root/var/lib/remora-control"
    install -d -o 1337 "$root/var/lib/remora"
    sed -i 's/^# REMORA_CONTROL_ARGS/REMORA_CONTROL_ARGS/' "$root/etc/remora/control.env"
    (unit remora-control) 2>"$work/control.log" &
    soon "${run[@]}" status
    cp deploy/examples/vm/mesh.yaml "$root/" && "${run[@]}" apply -f /mesh.yaml >/dev/null
    "${run[@]}" token create --service-account orders >"$work/token"
    install -m 640 -g 1337 "$work/token" "$root/etc/remora/token"

    mkdir "$work/program" && echo "orders of a VM" >"$work/program/index.html"
    python3 -m http.server 8080 --bind 127.0.0.1 --directory "$work/program" >/dev/null 2>&1 &
    (unit remora-proxy) 2>"$work/proxy.log" &
    "${run[@]}" ready --for 60s || fail "the proxy is not ready: $(cat "$work/proxy.log")"
    says "ns/default/sa/orders" curl -sS 127.0.0.1:15000/certs

    # A caller with a sidecar gets through, one without does not.
    "$remora" run --control 192.0.2.10:15012 --egress orders=9080 -- curl -fsS 127.0.0.1:9080/ >"$work/answer" 2>"$work/run.log" ||
        fail "the call: $(cat "$work/run.log" "$work/proxy.log")"
    grep -q "orders of a VM" "$work/answer" || fail "the answer is $(cat "$work/answer")"
    ! curl -fsS -m 5 http://192.0.2.20:15006/ 2>/dev/null || fail "a caller without certificate got in"
}

$part

# What setup scripts have in common; sourced by them. `target` is the folder for what they make.

# Makes the virtual environment $1 with the packages $2…; a stamp file skips what is already there.
venv() {
    local dir=$target/$1 stamp=$target/$1/.installed; shift
    if [ "$(cat "$stamp" 2>/dev/null)" != "$*" ]; then
        rm -rf "$dir"
        python3 -m venv "$dir"
        "$dir/bin/pip" install --quiet --disable-pip-version-check "$@"
        echo "$*" >"$stamp"
    fi
}

# Installs Debian packages without letting their post-install scripts start services.
packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then
        made=1
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
    fi
    local status=0
    { apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
        >"$target/apt.log" 2>&1 || status=$?
    [ -n "$made" ] && rm -f $policy
    [ $status -eq 0 ] || { tail -n 30 "$target/apt.log" >&2; return $status; }
}

# The programs behind sidecars that are Python, in the virtual environment `apps`.
apps() {
    venv apps grpcio==1.85.1 grpcio-health-checking==1.85.1 websockets==15.0.1 aiosmtpd==1.4.6 PyYAML==6.0.3
}

#!/bin/sh
# Copies nft and ip (whose routes `remora init --mode tproxy` needs), and what they need (libraries, the names of protocols), into FOLDER,
# as the root of an image has it.
#
#   deploy/nft-root.sh FOLDER
#
# Needs Debian's nftables, iproute2 and netbase.
set -eu
folder=$1
mkdir -p "$folder"
for name in nft ip; do
    program=$(command -v "$name" || echo "/usr/sbin/$name")
    for file in $(ldd "$program" | grep -o '/[^ ]*') /etc/protocols; do
        cp --parents --dereference "$file" "$folder"
    done
    install -D "$(readlink -f "$program")" "$folder/usr/sbin/$name"
done

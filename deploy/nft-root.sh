#!/bin/sh
# Copies nft and what it needs (its libraries, the names of protocols) into FOLDER, as the root of an image has it.
#
#   deploy/nft-root.sh FOLDER
#
# Needs Debian's nftables and netbase.
set -eu
folder=$1
nft=$(command -v nft || echo /usr/sbin/nft)
mkdir -p "$folder"
for file in $(ldd "$nft" | grep -o '/[^ ]*') /etc/protocols; do
    cp --parents --dereference "$file" "$folder"
done
install -D "$nft" "$folder/usr/sbin/nft"

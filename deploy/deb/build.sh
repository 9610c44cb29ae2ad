#!/usr/bin/env bash
# Makes the Debian package of a program that `deploy/static.sh remora` built, and prints its path.
#
#   deploy/deb/build.sh BINARY FOLDER
#
# Needs dpkg-deb. VERSION is that of Cargo.toml unless it is set; SOURCE_DATE_EPOCH is the time of all files.
set -euo pipefail
binary=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/../.."
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

place() { install -D -m "${3:-644}" "$1" "$root/$2"; }
place "$binary" usr/bin/remora 755
for unit in deploy/systemd/*.service; do place "$unit" "lib/systemd/system/${unit##*/}"; done
place deploy/systemd/remora.sysusers usr/lib/sysusers.d/remora.conf
for name in proxy.yaml proxy.env init.env control.env; do place "deploy/systemd/$name" "etc/remora/$name"; done
for page in docs/reference/*.md; do place "$page" "usr/share/doc/remora/reference/${page##*/}"; done
place deploy/deb/copyright usr/share/doc/remora/copyright
place deploy/deb/lintian-overrides usr/share/lintian/overrides/remora
gzip -9n <CHANGELOG.md >"$root/usr/share/doc/remora/NEWS.gz"
printf 'remora (%s) stable; urgency=medium\n\n  * NEWS.gz has the changes.\n\n -- %s  %s\n' "$version" \
    "$(sed -n 's/^Maintainer: //p' deploy/deb/control)" "$(date -R -u -d "@$SOURCE_DATE_EPOCH")" |
    gzip -9n >"$root/usr/share/doc/remora/changelog.gz"

mkdir "$root/DEBIAN"
size=$(du -k -s --exclude=DEBIAN "$root" | cut -f 1)
sed -e "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@SIZE@/$size/" deploy/deb/control >"$root/DEBIAN/control"
install -m 755 deploy/deb/{postinst,prerm,postrm} "$root/DEBIAN"
(cd "$root" && find etc -type f -printf '/%p\n' | LC_ALL=C sort) >"$root/DEBIAN/conffiles"
(cd "$root" && find usr lib -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root"/DEBIAN/{control,conffiles,md5sums}
mkdir -p "$out"
deb=$out/remora_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$deb" >/dev/null
echo "$deb"

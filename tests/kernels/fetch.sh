#!/bin/bash
# fetch.sh DIR: Debian's kernels of three releases, unpacked for vmrun.sh. Nothing is installed: the packages are only
# downloaded, with lists of their own, so that the machine's apt never hears of the other releases.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' | head -1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$dir"/lists/partial "$dir"/archives/partial
for suite in bookworm trixie sid; do
  echo "deb [arch=amd64 signed-by=$keys] $mirror $suite main"
done > "$dir/sources.list"
apt=(-q -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$dir/lists"
  -o Dir::Cache::Archives="$dir/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update >&2
for suite in bookworm trixie sid; do
  # The metapackage names the newest kernel of its release.
  image=$(apt-cache "${apt[@]}" show "linux-image-amd64/$suite" | grep '^Depends:' | grep -o 'linux-image-[0-9][^ ,]*' | head -1)
  target=$dir/$suite
  if [ ! -e "$target/$image.done" ]; then
    rm -rf "$target"
    mkdir -p "$target"
    # Newer releases split the image into a binary, modules and a base.
    parts=$(apt-cache "${apt[@]}" show "$image/$suite" | grep '^Depends:' | grep -o 'linux-\(base\|binary\|modules\)-[0-9][^ ,]*' || true)
    (cd "$dir/archives" && rm -f ./*.deb && apt-get "${apt[@]}" download "$image/$suite" $parts >&2)
    for deb in "$dir"/archives/*.deb; do dpkg-deb -x "$deb" "$target"; done
    [ -d "$target/usr/lib/modules" ] || { mkdir -p "$target/usr/lib" && mv "$target/lib/modules" "$target/usr/lib/"; }
    rmdir "$target/lib" 2>/dev/null || true
    [ -e "$target/lib" ] || ln -s usr/lib "$target/lib"
    find "$target/usr/lib/modules" -name '*.ko.xz' -exec unxz {} +
    cp "$(find "$target" -name 'vmlinuz*' -type f | head -1)" "$target/vmlinuz"
    depmod -b "$target" "$(ls "$target/usr/lib/modules")"
    touch "$target/$image.done"
  fi
  echo "$suite $image"
done

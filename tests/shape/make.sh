#!/usr/bin/env bash
# Makes the PKCS#12 fixtures of this folder with openssl: root, intermediate, leaf; base64 of each PFX.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$1.key" 2>/dev/null; }
key root; key mid; key leaf
days=36500
openssl req -x509 -new -key "$work/root.key" -subj /CN=root -days $days -out "$work/root.pem"
sign() { # name issuer ca
  openssl req -new -key "$work/$1.key" -subj "/CN=$1" -out "$work/$1.csr"
  printf 'basicConstraints=CA:%s\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nsubjectAltName=DNS:localhost\n' "$3" > "$work/ext"
  openssl x509 -req -in "$work/$1.csr" -CA "$work/$2.pem" -CAkey "$work/$2.key" -CAcreateserial -days $days -extfile "$work/ext" -out "$work/$1.pem" 2>/dev/null
}
sign mid root TRUE; sign leaf mid FALSE
pfx() { # name, certificates after the leaf, options
  local name=$1 chain=$2; shift 2
  cat $chain > "$work/chain"
  openssl pkcs12 -export -inkey "$work/leaf.key" -in "$work/leaf.pem" -certfile "$work/chain" "$@" -out "$work/out"
  base64 -w 76 "$work/out" > "$name.b64"
}
cd "$work" && out="$OLDPWD" && cd "$out"
C="$work/root.pem $work/mid.pem"
pfx modern "$C" -passout pass:
pfx legacy "$C" -passout pass: -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1
pfx no-mac "$C" -passout pass: -nomac
pfx plain "$C" -passout pass: -keypbe NONE -certpbe NONE -nomac
pfx gap "$work/root.pem" -passout pass:
pfx password "$C" -passout pass:other
openssl pkcs8 -topk8 -nocrypt -in "$work/leaf.key" -out key.pem
cat "$work/leaf.pem" "$work/mid.pem" "$work/root.pem" > chain.pem
cat "$work/leaf.pem" "$work/root.pem" > gap.pem

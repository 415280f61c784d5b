#!/usr/bin/env bash
# Makes the PKCS#12 files of this folder: for an RSA, an EC and an Ed25519 key each writer's form, as base64, and
# KIND.pem, which is what OpenSSL prints of each of them: private key, leaf, intermediate, root. Needs openssl 3,
# python3 and a JDK. What OpenSSL prints is compared before a file is kept.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
days=36500

key() { # KIND FILE
  case $1 in
    rsa) openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$2" 2>/dev/null ;;
    ec) openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$2" ;;
    ed25519) openssl genpkey -algorithm ED25519 -out "$2" ;;
  esac
}
sign() { # NAME ISSUER CA
  openssl req -new -key "$work/$1.key" -subj "/CN=$1" -out "$work/csr"
  printf 'basicConstraints=critical,CA:%s\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nsubjectAltName=DNS:localhost\n' "$3" > "$work/ext"
  openssl x509 -req -in "$work/csr" -CA "$work/$2.pem" -CAkey "$work/$2.key" -CAcreateserial -days $days -extfile "$work/ext" -out "$work/$1.pem" 2>/dev/null
}
printed() { # FILE: the blocks alone, keys first
  local all
  all=$(openssl pkcs12 -legacy -in "$1" -nodes -passin pass:)
  sed -n '/BEGIN PRIVATE KEY/,/END PRIVATE KEY/p' <<< "$all"
  sed -n '/BEGIN CERTIFICATE/,/END CERTIFICATE/p' <<< "$all"
}
blocks() { python3 -c 'import re,sys; print(sorted(re.findall("-----BEGIN.*?-----END[^\n]*", sys.stdin.read(), re.S)))'; }
keep() { # NAME KIND: compares and keeps $work/pfx
  if [ "$(printed "$work/pfx" | blocks)" != "$(blocks < "$out/$2.pem")" ]; then
    echo "$1: OpenSSL prints something else" >&2
    exit 1
  fi
  base64 -w 76 "$work/pfx" > "$out/$2-$1.b64"
}
for kind in rsa ec ed25519; do
  key ec "$work/root.key"; key ec "$work/mid.key"; key $kind "$work/leaf.key"
  openssl req -x509 -new -key "$work/root.key" -subj /CN=root -days $days -out "$work/root.pem"
  sign mid root TRUE; sign leaf mid FALSE
  openssl pkcs8 -topk8 -nocrypt -in "$work/leaf.key" > "$kind.pem"
  cat "$work/leaf.pem" "$work/mid.pem" "$work/root.pem" >> "$kind.pem"
  cat "$work/root.pem" "$work/mid.pem" > "$work/others"
  export_as() { # NAME OPTIONS
    local name=$1; shift
    openssl pkcs12 -export -inkey "$work/leaf.key" -in "$work/leaf.pem" -certfile "$work/others" -passout pass: "$@" -out "$work/pfx"
    keep "$name" $kind
  }
  export_as openssl
  export_as openssl-legacy -legacy
  export_as openssl-no-mac -nomac
  export_as openssl-plain -keypbe NONE -certpbe NONE -nomac
  cp "$work/pfx" "$work/plain"
  for safes in 1 3; do
    python3 safes.py $safes < "$work/plain" > "$work/pfx"
    keep safes-$safes $kind
  done
  # keytool takes no empty password, so a keystore of its own is stored again by the same writer without one.
  openssl pkcs12 -export -inkey "$work/leaf.key" -in "$work/leaf.pem" -certfile "$work/others" -name one -passout pass:changeit -out "$work/in"
  for form in keytool keytool-legacy; do
    rm -f "$work/store"
    legacy=$([ $form = keytool ] || echo -J-Dkeystore.pkcs12.legacy)
    keytool -importkeystore $legacy -srckeystore "$work/in" -srcstoretype PKCS12 -srcstorepass changeit -destkeystore "$work/store" -deststoretype PKCS12 -deststorepass changeit 2>/dev/null
    java ${legacy#-J} Empty.java "$work/store" changeit "$work/pfx" two
    keep $form $kind
    java ${legacy#-J} Empty.java "$work/store" changeit "$work/pfx" zero
    base64 -w 76 "$work/pfx" > "$out/$kind-$form-zero.b64"
  done
done

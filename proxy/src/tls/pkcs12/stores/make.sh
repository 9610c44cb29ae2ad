#!/usr/bin/env bash
# Makes the stores beside it, with OpenSSL 3.0 and Java 17. They are test data: the keys in them are used for nothing.
set -euo pipefail
cd "$(dirname "$0")"
key=$(mktemp)
trap 'rm -f "$key"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$key" -out chain.pem -days 36500 \
    -subj /CN=store -addext subjectAltName=DNS:store.example
openssl pkcs8 -topk8 -v2 aes256 -in "$key" -out key.pem -passout pass:changeit
store() { openssl pkcs12 -export -in chain.pem -inkey "$key" -out "$@"; }
store openssl.p12 -passout pass:changeit -name own
store sha1.p12 -passout pass:pässword -macalg sha1 -certpbe AES-128-CBC -keypbe AES-192-CBC
store nomac.p12 -passout pass:changeit -nomac
store legacy.p12 -passout pass:changeit -legacy
store plain.p12 -passout pass: -keypbe NONE -certpbe NONE
java() {
    keytool -genkeypair -alias "$2" -keyalg EC -groupname secp256r1 -dname CN=java -ext san=dns:java.example \
        -validity 36500 -storetype PKCS12 -keystore "$1" -storepass changeit
}
rm -f java.p12
java java.p12 one
cp java.p12 two.p12
java two.p12 two

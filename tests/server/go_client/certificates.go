// An authority of one test and what it signs: server, next (to replace it), good, expired; and wrong, by another.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func write(path, kind string, der []byte) {
	temporary := path + ".new"
	check(os.WriteFile(temporary, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0600))
	check(os.Rename(temporary, path))
}

func template(name string, from, to time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(err)
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to)}
}

func newAuthority(name string) authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	certificate := template(name, -time.Hour, time.Hour)
	certificate.IsCA, certificate.BasicConstraintsValid = true, true
	certificate.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, &key.PublicKey, key)
	check(err)
	parsed, err := x509.ParseCertificate(der)
	check(err)
	return authority{parsed, key}
}

func (a authority) issue(folder, name string, from, to time.Duration) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	certificate := template(name, from, to)
	certificate.DNSNames = []string{"localhost"}
	certificate.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, certificate, a.certificate, &key.PublicKey, a.key)
	check(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	write(filepath.Join(folder, name+".pem"), "CERTIFICATE", der)
	write(filepath.Join(folder, name+".key"), "PRIVATE KEY", private)
}

// Puts one certificate with its key in the place of another.
func install(folder, from, to string) {
	for _, kind := range []string{".key", ".pem"} {
		check(os.Rename(filepath.Join(folder, from+kind), filepath.Join(folder, to+kind)))
	}
}

func makeCertificates(folder string) {
	ours, theirs := newAuthority("ours"), newAuthority("theirs")
	write(filepath.Join(folder, "ca.pem"), "CERTIFICATE", ours.certificate.Raw)
	for _, name := range []string{"server", "next", "good"} {
		ours.issue(folder, name, -time.Minute, time.Hour)
	}
	ours.issue(folder, "expired", -2*time.Hour, -time.Hour)
	theirs.issue(folder, "wrong", -time.Minute, time.Hour)
}

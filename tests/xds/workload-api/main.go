// A SPIFFE agent that is not ours: go-spiffe's types of the Workload API, on gRPC's own server. In its folder it looks for entries: NAME.entry holds
// the SPIFFE ID of whoever asks at NAME.sock, who is refused until it is there. Like SPIRE's server, it makes a CA of its own at each start, below the
// root that it is given, and every SVID is followed by another one at half of its life.
package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"log"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type authority struct {
	root        []byte
	certificate *x509.Certificate
	key         crypto.Signer
	life        time.Duration
}

// Signs a key of its own: a CA's, or with a SPIFFE ID a workload's.
func (a *authority) sign(id *url.URL, life time.Duration) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(life), BasicConstraintsValid: true,
	}
	if id == nil {
		template.Subject = pkix.Name{CommonName: "agent"}
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	} else {
		template.URIs, template.KeyUsage = []*url.URL{id}, x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	return der, key, err
}

type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	authority *authority
	entry     string
}

func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	header, _ := metadata.FromIncomingContext(stream.Context())
	if values := header.Get("workload.spiffe.io"); len(values) != 1 || values[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	for {
		text, err := os.ReadFile(a.entry)
		if err != nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		svid, err := a.issue(strings.TrimSpace(string(text)))
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid}}); err != nil {
			return err
		}
		if pause(stream.Context(), a.authority.life/2) != nil {
			return nil
		}
	}
}

func pause(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	<-ctx.Done()
	if ctx.Err() == context.DeadlineExceeded {
		return nil
	}
	return ctx.Err()
}

func (a *agent) issue(text string) (*workload.X509SVID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, err
	}
	leaf, key, err := a.authority.sign(id.URL(), a.authority.life)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	chain := bytes.Join([][]byte{leaf, a.authority.certificate.Raw}, nil)
	// What go-spiffe's clients would check.
	if _, err := x509svid.ParseRaw(chain, der); err != nil {
		return nil, err
	}
	return &workload.X509SVID{SpiffeId: text, X509Svid: chain, X509SvidKey: der, Bundle: a.authority.root}, nil
}

func main() {
	folder := flag.String("folder", ".", "of entries and sockets")
	names := flag.String("names", "", "of sockets, with commas")
	root := flag.String("root", "", "PATH.pem and PATH.key")
	life := flag.Duration("life", time.Hour, "of an SVID")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*root+".pem", *root+".key")
	must(err)
	top, err := x509.ParseCertificate(pair.Certificate[0])
	must(err)
	der, key, err := (&authority{certificate: top, key: pair.PrivateKey.(crypto.Signer)}).sign(nil, 24*time.Hour)
	must(err)
	certificate, err := x509.ParseCertificate(der)
	must(err)
	ca := &authority{root: top.Raw, certificate: certificate, key: key, life: *life}
	ended := make(chan error)
	for _, name := range strings.Split(*names, ",") {
		path := filepath.Join(*folder, name+".sock")
		_ = os.Remove(path)
		listener, err := net.Listen("unix", path)
		must(err)
		server := grpc.NewServer()
		workload.RegisterSpiffeWorkloadAPIServer(server, &agent{authority: ca, entry: filepath.Join(*folder, name+".entry")})
		go func() { ended <- server.Serve(listener) }()
	}
	must(<-ended)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

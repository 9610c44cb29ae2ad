// An ADS server that is not ours: go-control-plane's own cache and server, both variants.
//
//	go-control-plane -xds 127.0.0.1:0 -http 127.0.0.1:0 -node ID
//
// Its first line of output is {"xds": "…", "http": "…"}, the bound addresses. PUT /snapshot takes the resources of the node as a
// DiscoveryResponse in JSON: version_info, and resources with "@type". GET /answers is what the node made of them, one entry for each
// ACK and NACK, in the order in which they came.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	// Messages that a resource may contain: protojson looks "@type" up among what is linked.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// answer is what the node said to one response.
type answer struct {
	Stream  int64  `json:"stream"`
	Type    string `json:"type"`
	Version string `json:"version"`
	// The reason of a NACK; empty in an ACK.
	Refused string `json:"refused"`
}

// answers joins responses with the requests that answer them, by stream and nonce.
type answers struct {
	sync.Mutex
	open map[string]answer
	all  []answer
}

func (a *answers) sent(stream int64, typeURL, version, nonce string) {
	a.Lock()
	defer a.Unlock()
	a.open[fmt.Sprint(stream, typeURL, nonce)] = answer{Stream: stream, Type: typeURL, Version: version}
}

func (a *answers) came(stream int64, typeURL, nonce string, refused *rpc.Status) {
	a.Lock()
	defer a.Unlock()
	key := fmt.Sprint(stream, typeURL, nonce)
	if said, known := a.open[key]; known {
		delete(a.open, key)
		said.Refused = refused.GetMessage()
		a.all = append(a.all, said)
	}
}

func (a *answers) callbacks() server.CallbackFuncs {
	opened := func(_ context.Context, stream int64, _ string) error {
		log.Printf("stream %d is open", stream)
		return nil
	}
	return server.CallbackFuncs{
		StreamOpenFunc:      opened,
		DeltaStreamOpenFunc: opened,
		StreamRequestFunc: func(stream int64, q *discovery.DiscoveryRequest) error {
			a.came(stream, q.TypeUrl, q.ResponseNonce, q.ErrorDetail)
			return nil
		},
		StreamResponseFunc: func(_ context.Context, stream int64, _ *discovery.DiscoveryRequest, r *discovery.DiscoveryResponse) {
			a.sent(stream, r.TypeUrl, r.VersionInfo, r.Nonce)
		},
		StreamDeltaRequestFunc: func(stream int64, q *discovery.DeltaDiscoveryRequest) error {
			a.came(stream, q.TypeUrl, q.ResponseNonce, q.ErrorDetail)
			return nil
		},
		StreamDeltaResponseFunc: func(stream int64, _ *discovery.DeltaDiscoveryRequest, r *discovery.DeltaDiscoveryResponse) {
			a.sent(stream, r.TypeUrl, r.SystemVersionInfo, r.Nonce)
		},
	}
}

// snapshot reads a DiscoveryResponse in JSON.
func snapshot(text []byte) (*cache.Snapshot, error) {
	var response discovery.DiscoveryResponse
	if err := protojson.Unmarshal(text, &response); err != nil {
		return nil, err
	}
	resources := map[string][]types.Resource{}
	for _, packed := range response.Resources {
		resource, err := packed.UnmarshalNew()
		if err != nil {
			return nil, err
		}
		resources[packed.TypeUrl] = append(resources[packed.TypeUrl], resource)
	}
	made, err := cache.NewSnapshot(response.VersionInfo, resources)
	if err != nil {
		return nil, err
	}
	return made, made.Consistent()
}

func main() {
	xds := flag.String("xds", "127.0.0.1:0", "address of ADS")
	rest := flag.String("http", "127.0.0.1:0", "address of /snapshot and /answers")
	node := flag.String("node", "", "id of the node")
	flag.Parse()

	said := &answers{open: map[string]answer{}}
	snapshots := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	ads := server.NewServer(context.Background(), snapshots, said.callbacks())

	http.HandleFunc("PUT /snapshot", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err == nil {
			var made *cache.Snapshot
			if made, err = snapshot(text); err == nil {
				err = snapshots.SetSnapshot(r.Context(), *node, made)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	http.HandleFunc("GET /answers", func(w http.ResponseWriter, _ *http.Request) {
		said.Lock()
		defer said.Unlock()
		if err := json.NewEncoder(w).Encode(said.all); err != nil {
			log.Print(err)
		}
	})

	listen := func(address string) net.Listener {
		bound, err := net.Listen("tcp", address)
		if err != nil {
			log.Fatal(err)
		}
		return bound
	}
	adsListener, httpListener := listen(*xds), listen(*rest)
	fmt.Printf("{\"xds\": %q, \"http\": %q}\n", adsListener.Addr(), httpListener.Addr())
	go func() { log.Fatal(http.Serve(httpListener, nil)) }()
	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, ads)
	log.Fatal(grpcServer.Serve(adsListener))
}

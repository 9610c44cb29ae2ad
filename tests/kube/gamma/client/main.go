// The command `client` of the image echo-advanced, as far as the mesh conformance cases use it: it makes requests, and prints what came
// back in the lines that sigs.k8s.io/gateway-api/conformance/utils/echo reads. The servers that it calls are that module's echo-basic.
//
//	client http://echo:80/path --method=GET -H 'Name:value' --count=10
//	client grpc://echo:7070 --count=10
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "sigs.k8s.io/gateway-api/conformance/echo-basic/grpcechoserver"
)

// timeout of one request.
const timeout = 10 * time.Second

// asked is what the command line says.
type asked struct {
	url     *url.URL
	method  string
	headers [][2]string
	count   int
}

func main() {
	out := bufio.NewWriter(os.Stdout)
	request, err := parse(os.Args[1:])
	if err == nil {
		if request.url.Scheme == "grpc" {
			err = callGRPC(request, out)
		} else {
			err = callHTTP(request, out)
		}
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// parse reads the arguments; options may stand behind the URL.
func parse(arguments []string) (asked, error) {
	request := asked{method: http.MethodGet, count: 1}
	for i := 0; i < len(arguments); i++ {
		name, value, _ := strings.Cut(arguments[i], "=")
		var err error
		switch {
		case name == "--method":
			request.method = value
		case name == "--count":
			request.count, err = strconv.Atoi(value)
		case name == "-H" && i+1 < len(arguments):
			i++
			key, value, _ := strings.Cut(arguments[i], ":")
			request.headers = append(request.headers, [2]string{key, value})
		case strings.HasPrefix(name, "-") || request.url != nil:
			err = fmt.Errorf("argument %q is not known", arguments[i])
		default:
			request.url, err = url.Parse(arguments[i])
		}
		if err != nil {
			return request, err
		}
	}
	if request.url == nil {
		return request, fmt.Errorf("usage: client URL [--method=M] [-H NAME:VALUE] [--count=N]")
	}
	return request, nil
}

// echoed is what an HTTP server of echo-basic answers.
type echoed struct {
	Path    string              `json:"path"`
	Host    string              `json:"host"`
	Method  string              `json:"method"`
	Proto   string              `json:"proto"`
	Headers map[string][]string `json:"headers"`
	Pod     string              `json:"pod"`
}

// callHTTP does not follow redirects, and adds no header of its own but a user agent.
func callHTTP(request asked, out io.Writer) error {
	client := &http.Client{
		Timeout:       timeout,
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for range request.count {
		call, err := http.NewRequest(request.method, request.url.String(), nil)
		if err != nil {
			return err
		}
		for _, header := range request.headers {
			if strings.EqualFold(header[0], "host") {
				call.Host = header[1]
			} else {
				// As it is written: names of HTTP/1 may have any case.
				call.Header[header[0]] = append(call.Header[header[0]], header[1])
			}
		}
		answer, err := client.Do(call)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "StatusCode=%d\n", answer.StatusCode)
		printHeaders(out, "ResponseHeader", answer.Header)
		var said echoed
		// Answers of the mesh are no echo: they have a status, and no pod.
		if json.Unmarshal(body, &said) == nil && said.Pod != "" {
			fmt.Fprintf(out, "Hostname=%s\nHost=%s\nMethod=%s\nProto=%s\nURL=%s\n", said.Pod, said.Host, said.Method, said.Proto, said.Path)
			printHeaders(out, "RequestHeader", said.Headers)
		}
		fmt.Fprintln(out)
	}
	return nil
}

// callGRPC makes calls on one connection; a call that fails ends it.
func callGRPC(request asked, out io.Writer) error {
	connection, err := grpc.NewClient("passthrough:///"+request.url.Host, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewGrpcEchoClient(connection)
	for range request.count {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		for _, header := range request.headers {
			ctx = metadata.AppendToOutgoingContext(ctx, header[0], header[1])
		}
		var answered metadata.MD
		answer, err := client.Echo(ctx, &pb.EchoRequest{}, grpc.Header(&answered))
		cancel()
		if err != nil {
			return err
		}
		// The cases speak of statuses of HTTP: gRPC's OK is 200.
		fmt.Fprintf(out, "StatusCode=%d\n", http.StatusOK)
		printHeaders(out, "ResponseHeader", answered)
		said := answer.GetAssertions()
		fmt.Fprintf(out, "Hostname=%s\nHost=%s\nMethod=%s\n", said.GetContext().GetPod(), said.GetAuthority(), said.GetFullyQualifiedMethod())
		for _, header := range said.GetHeaders() {
			fmt.Fprintf(out, "RequestHeader=%s:%s\n", header.GetKey(), header.GetValue())
		}
		fmt.Fprintln(out)
	}
	return nil
}

func printHeaders(out io.Writer, field string, headers map[string][]string) {
	for name, values := range headers {
		for _, value := range values {
			fmt.Fprintf(out, "%s=%s:%s\n", field, name, value)
		}
	}
}

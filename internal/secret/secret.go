// Package secret reads the tokens of a cluster from files and checks them.
//
// A token is compared without telling by the time it takes where it differs.
// Join lets gRPC callers in that present the join token, or, where there is none,
// those on the same machine; it does not encrypt, so the token is as secret as
// the cluster's network. No token appears in an error or a log line.
package secret

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// minToken is the shortest token accepted, in bytes.
const minToken = 16

// ReadFile returns the token in a file, without surrounding white space; "" for
// no file name. A token is one word of printable ASCII, which headers can carry.
func ReadFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minToken {
		return "", fmt.Errorf("reading the token: %s holds %d characters; a token has at least %d (make one with: openssl rand -hex 32)", path, len(token), minToken)
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("reading the token: %s holds more than one word, or characters that cannot be sent in a header", path)
		}
	}
	return token, nil
}

// Equal compares without telling by its duration where a and b differ.
func Equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// metadataKey carries the join token on every call between daemon and supernode.
const metadataKey = "damselfly-join-token"

// Join admits gRPC callers to a supernode: those with the join token, or, if
// there is none, those on this machine.
type Join struct{ Token string }

func (j Join) check(ctx context.Context) error {
	if j.Token == "" {
		if p, ok := peer.FromContext(ctx); ok && isLoopback(p.Addr) {
			return nil
		}
		return status.Error(codes.Unauthenticated, "this supernode accepts daemons on its own machine only: give it and the daemons the same --join-token-file")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get(metadataKey) {
		if Equal(v, j.Token) {
			return nil
		}
	}
	return status.Error(codes.Unauthenticated, "wrong or missing join token: give the daemon the supernode's --join-token-file")
}

func isLoopback(a net.Addr) bool {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// ServerOptions make a gRPC server refuse callers without the token.
func (j Join) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := j.check(ctx); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if err := j.check(ss.Context()); err != nil {
				return err
			}
			return h(srv, ss)
		}),
	}
}

// GetRequestMetadata presents the token; Join is a credentials.PerRPCCredentials.
func (j Join) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if j.Token == "" {
		return nil, nil //nolint:nilnil // no metadata is what the interface means by nil
	}
	return map[string]string{metadataKey: j.Token}, nil
}

// RequireTransportSecurity lets the token travel in the clear: encryption of
// the cluster's network is the operator's choice.
func (Join) RequireTransportSecurity() bool { return false }

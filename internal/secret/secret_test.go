package secret_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/damselfly-io/damselfly/internal/secret"
)

func TestReadFile(t *testing.T) {
	for _, tc := range []struct {
		name, content, want, complaint string
	}{
		{"with a newline", "0123456789abcdef\n", "0123456789abcdef", ""},
		{"with spaces around", " \t0123456789abcdef \r\n", "0123456789abcdef", ""},
		{"too short", "0123456789abcde\n", "", "at least 16"},
		{"empty", "", "", "at least 16"},
		{"two lines", "0123456789abcdef\n0123456789abcdef\n", "", "more than one word"},
		{"not ASCII", "0123456789abcdéf", "", "cannot be sent"},
		{"control characters", "0123456789\x00abcdef", "", "cannot be sent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := secret.ReadFile(path)
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if tc.complaint == "" != (err == nil) || (err != nil && !strings.Contains(err.Error(), tc.complaint)) {
				t.Errorf("error %v, want %q", err, tc.complaint)
			}
			if err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("%v does not name the file", err)
			}
			if err != nil && len(tc.content) > 0 && strings.Contains(err.Error(), strings.TrimSpace(tc.content)) {
				t.Errorf("%v repeats the secret", err)
			}
		})
	}
	if got, err := secret.ReadFile(""); got != "" || err != nil {
		t.Errorf("no file: %q, %v", got, err)
	}
	if _, err := secret.ReadFile(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent file is no error")
	}
}

func TestEqual(t *testing.T) {
	if !secret.Equal("a", "a") || secret.Equal("a", "b") || secret.Equal("a", "") || !secret.Equal("", "") {
		t.Error("Equal is wrong")
	}
}

const (
	right = "0123456789abcdef0123456789abcdef"
	wrong = "0123456789abcdef0123456789abcdeX"
)

func serve(t *testing.T, lis net.Listener, j secret.Join) {
	t.Helper()
	srv := grpc.NewServer(j.ServerOptions()...)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func dial(t *testing.T, target string, options ...grpc.DialOption) healthpb.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient(target, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return healthpb.NewHealthClient(conn)
}

// call makes one unary and one streaming call and returns their codes.
func call(t *testing.T, c healthpb.HealthClient) (unary, stream codes.Code) {
	t.Helper()
	_, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{})
	unary = status.Code(err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = w.Recv()
	}
	return unary, status.Code(err)
}

func TestJoin(t *testing.T) {
	for _, tc := range []struct {
		name           string
		server, client string
		want           codes.Code
	}{
		{"right token", right, right, codes.OK},
		{"wrong token", right, wrong, codes.Unauthenticated},
		{"no token", right, "", codes.Unauthenticated},
		{"none wanted, on loopback", "", "", codes.OK},
		{"none wanted, one given", "", right, codes.OK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serve(t, lis, secret.Join{Token: tc.server})
			c := dial(t, lis.Addr().String(), grpc.WithPerRPCCredentials(secret.Join{Token: tc.client}))
			if unary, stream := call(t, c); unary != tc.want || stream != tc.want {
				t.Errorf("unary %v, stream %v; want %v", unary, stream, tc.want)
			}
		})
	}
}

// away is a listener whose connections come from another machine.
type away struct {
	net.Listener
	from net.Addr
}

func (l away) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return awayConn{c, l.from}, err
}

type awayConn struct {
	net.Conn
	from net.Addr
}

func (c awayConn) RemoteAddr() net.Addr { return c.from }

func TestJoinFromElsewhere(t *testing.T) {
	for _, tc := range []struct {
		name  string
		from  net.Addr
		token string
		want  codes.Code
	}{
		{"without a token", &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5}, "", codes.Unauthenticated},
		{"with it", &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5}, right, codes.OK},
		{"IPv6", &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 5}, "", codes.Unauthenticated},
		{"IPv6 loopback", &net.TCPAddr{IP: net.IPv6loopback, Port: 5}, "", codes.OK},
		{"mapped loopback", &net.TCPAddr{IP: net.ParseIP("::ffff:127.0.0.1"), Port: 5}, "", codes.OK},
		{"an address that is none", &net.UnixAddr{Name: "@"}, "", codes.Unauthenticated},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pipe := bufconn.Listen(1 << 16)
			serve(t, away{pipe, tc.from}, secret.Join{Token: tc.token})
			c := dial(t, "passthrough:///pipe", grpc.WithPerRPCCredentials(secret.Join{Token: tc.token}),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
			if unary, stream := call(t, c); unary != tc.want || stream != tc.want {
				t.Errorf("unary %v, stream %v; want %v", unary, stream, tc.want)
			}
		})
	}
}

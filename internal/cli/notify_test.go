package cli_test

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/damselfly-io/damselfly/internal/cli"
)

func TestNotifyReady(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := cli.NotifyReady(); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	socket := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", socket)
	if err := cli.NotifyReady(); err == nil {
		t.Error("no error although nobody listens")
	}
	lis, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close() //nolint:errcheck // a test's socket
	if err := cli.NotifyReady(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := lis.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("systemd got %q, %v", buf[:n], err)
	}
}

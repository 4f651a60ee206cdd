package systemd

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// TestNotify starts the programs of the units of Type=notify as these do, but for
// paths, and waits until they say that they are ready: without that systemd would
// end them. There is no dfdaemon, and the snapshotter must not need one.
func TestNotify(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	dir, err := os.MkdirTemp("", "dfsd-") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program := filepath.Join(dir, "snapshotter")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/snapshotter").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	own := map[string][]string{
		"damselfly-keeper.service": {"--address", filepath.Join(dir, "k.sock")},
		"damselfly-snapshotter.service": {
			"--address", filepath.Join(dir, "s.sock"), "--keeper", filepath.Join(dir, "k.sock"), "--dfdaemon", filepath.Join(dir, "none.sock"),
			"--data-dir", filepath.Join(dir, "data"), "--http", "127.0.0.1:0",
		},
	}
	for _, unit := range units(t) { // the keeper comes first
		values := settings(t, unit)
		if !slices.Equal(values["Type"], []string{"notify"}) {
			continue
		}
		words := strings.Fields(values["ExecStart"][0])
		if words[0] != "/usr/local/bin/snapshotter" || own[unit] == nil {
			t.Errorf("%s starts %s, which this test does not know", unit, words[0])
			continue
		}
		args := words[1:]
		if i := slices.Index(args, "--config"); i >= 0 {
			if args[i+1] != "/etc/damselfly/snapshotter.yaml" {
				t.Errorf("%s reads %s", unit, args[i+1])
			}
			args[i+1] = "snapshotter.yaml"
		}
		startNotified(t, filepath.Join(dir, unit+".notify"), program, append(args, own[unit]...))
	}
}

// startNotified runs a program until the test ends and returns when it is ready.
func startNotified(t *testing.T, socket, program string, args []string) {
	t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = notify.Close() })
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, &log)
		}
	})
	const patience = 30 * time.Second
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		buf := make([]byte, 4096)
		n, err := notify.Read(buf) // descriptors that come with it are closed
		if err != nil {
			t.Fatalf("%s does not say that it is ready: %v", strings.Join(args, " "), err)
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return
		}
	}
}

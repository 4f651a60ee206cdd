package fleet

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain also serves as the program that listens.
func TestMain(m *testing.M) {
	socket := os.Getenv("FLEET_TEST_LISTEN")
	if socket == "" {
		os.Exit(m.Run())
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString("listening\n")
	for {
		if _, err := l.Accept(); err != nil {
			os.Exit(1)
		}
	}
}

func TestEndListener(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := endListener(socket); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	cmd := exec.Command(os.Args[0]) // #nosec G204 -- this program
	cmd.Env = append(os.Environ(), "FLEET_TEST_LISTEN="+socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := endListener(socket); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.Success() {
		t.Error("it ended by itself")
	}
	if err := endListener(socket); err != nil { // a stale socket
		t.Error(err)
	}
	if err := endProcess(cmd.Process.Pid); err != unix.ESRCH { //nolint:errorlint // a bare errno
		t.Errorf("a process that is gone: %v", err)
	}
}

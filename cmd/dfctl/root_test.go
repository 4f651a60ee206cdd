package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/nodetest"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
)

func TestExitCodes(t *testing.T) {
	n := nodetest.Start(t)
	n.URLs["https://h/ok"] = &nodetest.Content{Data: []byte("ok")}
	n.URLs["https://h/private"] = &nodetest.Content{OpenError: status.Error(codes.PermissionDenied, "origin answered 403 Forbidden")}
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	tests := []struct {
		args   string
		code   int
		stderr string // part of it
	}{
		{"dfctl get https://h/ok -q -O " + file, 0, ""},
		{"/usr/bin/dfget https://h/ok -q -O " + file, 0, ""},
		{"dfctl get https://h/ok -O " + dir, 1, "error: get https://h/ok: " + dir + " is a directory: name a file\n"},
		{"dfctl get", 2, "run 'dfctl get --help' for usage\n"},
		{"dfget ftp://h/ok", 2, "run 'dfget --help' for usage\n"},
		{"dfctl get https://h/ok --frob", 2, "unknown flag: --frob"},
		{"dfctl frob", 2, `unknown command "frob" for "dfctl"`},
		{"dfctl task frob", 2, `unknown command "frob" for "dfctl task"`},
		{"dfctl get https://h/ok --sha256 " + strings.Repeat("0", 64) + " -O " + file, 3, "it is not what was asked for\n"},
		{"dfctl get https://h/absent -O " + file, 4, "error: get https://h/absent: not found: origin answered 404 Not Found\n"},
		{"dfctl get https://h/private -O " + file, 5, "access refused: origin answered 403 Forbidden"},
		{"dfctl task ls", 0, ""},
		{"dfctl --help", 0, ""},
		{"dfctl --version", 0, ""},
	}
	for _, tt := range tests {
		con := outputtest.New("")
		con.Env[daemon.EnvSocket] = n.Socket
		if code := run(t.Context(), strings.Fields(tt.args), con.Console); code != tt.code {
			t.Errorf("%s: exit code %d, want %d: %s", tt.args, code, tt.code, &con.Stderr)
		}
		if got := con.Stderr.String(); !strings.Contains(got, tt.stderr) || tt.stderr == "" && got != "" {
			t.Errorf("%s: stderr %q, want %q", tt.args, got, tt.stderr)
		}
	}
}

func TestInterrupted(t *testing.T) {
	n := nodetest.Start(t)
	n.URLs["https://h/f"] = &nodetest.Content{Data: make([]byte, 1<<20), StopAt: 1 << 19}
	con := outputtest.New("")
	con.Env[daemon.EnvSocket] = n.Socket
	con.Columns, con.Step = 80, 1e9
	ctx, cancel := context.WithCancel(t.Context())
	con.OnErr = func(s string) {
		if strings.Contains(s, "50%") {
			cancel()
		}
	}
	if code := run(ctx, []string{"dfctl", "get", "https://h/f", "-O", filepath.Join(t.TempDir(), "f")}, con.Console); code != 130 {
		t.Errorf("exit code %d", code)
	}
	if got := con.Stderr.String(); !strings.HasSuffix(got, "continues there\nerror: interrupted\n") {
		t.Errorf("stderr %q", got)
	}
}

func TestDaemonDown(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	for _, args := range []string{"dfctl get https://h/f -O f", "dfctl task ls", "dfctl cache usage", "dfctl cache prune --to 0"} {
		con := outputtest.New("")
		con.Env[daemon.EnvSocket] = socket
		code := run(t.Context(), strings.Fields(args), con.Console)
		want := "error: dfdaemon is not running: there is no socket " + socket + "; start it (systemctl start dfdaemon, or dfdaemon --socket " + socket + ")"
		if got := con.Stderr.String(); code != 1 || !strings.HasPrefix(got, want) {
			t.Errorf("%s: exit code %d, stderr %q", args, code, got)
		}
	}
}

// Every command can speak JSON and explains itself.
func TestEveryCommand(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short description %q", cmd.CommandPath(), cmd.Short)
		}
		if !cmd.HasSubCommands() && cmd.Flag("output") == nil {
			t.Errorf("%s has no -o", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(outputtest.New("").Console))
}

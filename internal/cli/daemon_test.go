package cli

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/config"
)

type daemonConfig struct {
	config.Log

	Size config.Size `config:"size" default:"1KiB" help:"A size."`
}

func TestDaemon(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("size: 2KiB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(wrong, []byte("sizes: 2KiB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		size config.Size // 0: Run is not called
		code int
		says string
	}{
		{nil, 1 << 10, ExitOK, ""},
		{[]string{"--config", file}, 2 << 10, ExitOK, ""},
		{[]string{"--config", file, "--size", "3KiB"}, 3 << 10, ExitOK, ""},
		{[]string{"--config", wrong}, 0, ExitFailure, `unknown key "sizes"`},
		{[]string{"--sizes", "3KiB"}, 0, ExitUsage, "unknown flag"},
		{[]string{"x"}, 0, ExitUsage, `"x"`},
		{[]string{"--log-level", "loud"}, 0, ExitUsage, "loud"},
	} {
		var got config.Size
		cmd := Daemon[daemonConfig]{
			Use: "d", Short: "Run it", Log: func(c *daemonConfig) config.Log { return c.Log },
			Run: func(_ context.Context, c daemonConfig, _ *slog.Logger) error { got = c.Size; return nil },
		}.Command()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		if code := Run(t.Context(), cmd, tt.args); code != tt.code || got != tt.size || !strings.Contains(out.String(), tt.says) {
			t.Errorf("%q: code %d, size %d, %q", tt.args, code, got, &out)
		}
	}
}

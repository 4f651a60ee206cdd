package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/internal/cli"
)

// newRoot returns "x get OBJECT --out FILE [--rate N]" and the group "x image
// convert". Getting fails with result.
func newRoot(result error) *cobra.Command {
	root := &cobra.Command{Use: "x"}
	get := &cobra.Command{Use: "get", Args: cobra.ExactArgs(1), RunE: func(*cobra.Command, []string) error { return result }}
	get.Flags().Int("rate", 0, "rate")
	get.Flags().String("out", "", "out")
	_ = get.MarkFlagRequired("out")
	image := &cobra.Command{Use: "image"}
	image.AddCommand(&cobra.Command{Use: "convert", RunE: func(*cobra.Command, []string) error { return nil }})
	root.AddCommand(get, image)
	return root
}

func TestRun(t *testing.T) {
	const hint = "run 'x get --help' for usage\n"
	tests := []struct {
		name   string
		args   string
		result error
		code   int
		stderr string
	}{
		{name: "success", args: "get a --out f", code: cli.ExitOK},
		{name: "failure", args: "get a --out f", result: errors.New("disk full"), code: cli.ExitFailure, stderr: "error: disk full\n"},
		{name: "usage found by the command", args: "get a --out f", result: fmt.Errorf("get: %w", cli.Usagef("a and b")), code: cli.ExitUsage, stderr: "error: get: a and b\n" + hint},
		{name: "canceled by itself", args: "get a --out f", result: context.Canceled, code: cli.ExitFailure, stderr: "error: context canceled\n"},
		{name: "unknown flag", args: "get a --frob", code: cli.ExitUsage, stderr: "error: unknown flag: --frob\n" + hint},
		{name: "bad flag value", args: "get a --rate x", code: cli.ExitUsage, stderr: hint},
		{name: "missing argument", args: "get --out f", code: cli.ExitUsage, stderr: "error: accepts 1 arg(s), received 0\n" + hint},
		{name: "missing flag", args: "get a", code: cli.ExitUsage, stderr: hint},
		{name: "unknown command", args: "gett", code: cli.ExitUsage, stderr: "error: unknown command \"gett\" for \"x\" (did you mean \"get\"?)\nrun 'x --help' for usage\n"},
		{name: "unknown subcommand", args: "image frobnicate", code: cli.ExitUsage, stderr: "error: unknown command \"frobnicate\" for \"x image\"\nrun 'x image --help' for usage\n"},
		{name: "group alone", args: "image", code: cli.ExitOK},
		{name: "help", args: "get --help", code: cli.ExitOK},
		{name: "version", args: "--version", code: cli.ExitOK},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			root := newRoot(tt.result)
			root.SetOut(&stdout)
			root.SetErr(&stderr)
			if code := cli.Run(t.Context(), root, strings.Fields(tt.args)); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.HasSuffix(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
				t.Errorf("stderr %q, want %q", &stderr, tt.stderr)
			}
			if tt.code == cli.ExitUsage && strings.Count(stderr.String(), "\n") != 2 {
				t.Errorf("stderr is not one error and one hint: %q", &stderr)
			}
			if tt.code != cli.ExitOK && stdout.Len() > 0 {
				t.Errorf("failure wrote to stdout: %q", &stdout)
			}
		})
	}
}

func TestRunInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	root := &cobra.Command{Use: "x", RunE: func(cmd *cobra.Command, _ []string) error {
		cancel()
		<-cmd.Context().Done()
		return fmt.Errorf("pull: %w", cmd.Context().Err())
	}}
	var stderr bytes.Buffer
	root.SetErr(&stderr)
	if code := cli.Run(ctx, root, nil); code != cli.ExitInterrupted {
		t.Errorf("exit code %d", code)
	}
	if stderr.String() != "error: interrupted\n" {
		t.Errorf("stderr %q", &stderr)
	}
}

func TestRunStoppedDaemonSucceeds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	root := &cobra.Command{Use: "x", RunE: func(cmd *cobra.Command, _ []string) error {
		cancel()
		<-cmd.Context().Done()
		return nil
	}}
	if code := cli.Run(ctx, root, nil); code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
}

package images_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/images"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

type files = indextest.Files

// user runs commands with a home of their own.
type user struct {
	t *testing.T
	// con is the console of the last command.
	con  *outputtest.Console
	home string
	// setup is called on each command's console before it runs.
	setup func(*outputtest.Console)
}

func newUser(t *testing.T) *user {
	t.Helper()
	return &user{t: t, home: t.TempDir()}
}

// run returns the exit code of dfctl image with args.
func (u *user) run(ctx context.Context, args ...string) int {
	u.t.Helper()
	u.con = outputtest.New("")
	u.con.Env["HOME"] = u.home
	if u.setup != nil {
		u.setup(u.con)
	}
	root := &cobra.Command{Use: "dfctl"}
	root.AddCommand(images.Command(u.con.Console))
	root.SetOut(u.con.Out)
	root.SetErr(u.con.Err)
	return cli.Run(ctx, root, append([]string{"image"}, args...))
}

// ok runs a command that has to succeed and returns its output.
func (u *user) ok(args ...string) string {
	u.t.Helper()
	if code := u.run(u.t.Context(), args...); code != cli.ExitOK {
		u.t.Fatalf("dfctl image %s: exit code %d: %s%s", strings.Join(args, " "), code, &u.con.Stderr, &u.con.Stdout)
	}
	return u.con.Stdout.String()
}

// fails runs a command that has to fail with a code and a message.
func (u *user) fails(code int, message string, args ...string) {
	u.t.Helper()
	if got := u.run(u.t.Context(), args...); got != code {
		u.t.Errorf("dfctl image %s: exit code %d, want %d", strings.Join(args, " "), got, code)
	}
	if got := u.con.Stderr.String(); !strings.Contains(got, message) {
		u.t.Errorf("dfctl image %s: error %q, want %q", strings.Join(args, " "), got, message)
	}
}

// decode runs a command with -o json; nothing but its document is printed.
func decode[T any](u *user, code int, args ...string) T {
	u.t.Helper()
	var v T
	if got := u.run(u.t.Context(), append(args, "-o", "json")...); got != code {
		u.t.Fatalf("dfctl image %s: exit code %d: %s", strings.Join(args, " "), got, &u.con.Stderr)
	}
	d := json.NewDecoder(&u.con.Stdout)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		u.t.Fatalf("dfctl image %s: %v", strings.Join(args, " "), err)
	}
	if d.More() {
		u.t.Errorf("dfctl image %s: more than one document", strings.Join(args, " "))
	}
	if code == cli.ExitOK && u.con.Stderr.Len() > 0 {
		u.t.Errorf("dfctl image %s -o json wrote to standard error: %s", strings.Join(args, " "), &u.con.Stderr)
	}
	return v
}

// contains checks a text for parts of it.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

// list returns the names in a directory.
func list(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func write(t *testing.T, name, data string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

var (
	big, other = indextest.Noise(1, 700_000), indextest.Noise(2, 300_000)
	// script runs by an interpreter that env finds.
	script = "#!/usr/bin/env prog\n"
)

// app is an image whose second layer repeats content of the first.
func app(t *testing.T, more files) ggcr.Image {
	t.Helper()
	upper := files{"lib/": "", "lib/again": big, "lib/other": other, "usr/bin/start": script + strings.Repeat("#", 200)}
	for path, data := range more {
		upper[path] = data
	}
	return indextest.ImageOf(t, ggcr.ConfigFile{
		OS: "linux", Architecture: "amd64",
		Config: ggcr.Config{Cmd: []string{"start"}, Env: []string{"PATH=/usr/bin"}},
	},
		indextest.Layer(t, files{"etc/motd": "hello", "lib/big": big, "usr/bin/env": indextest.Noise(5, 5000), "usr/bin/prog": indextest.Noise(6, 5000)}.Tar(t)),
		indextest.Layer(t, upper.Tar(t)),
	)
}

package key_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/key"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
)

// run returns standard output.
func run(t *testing.T, env map[string]string, args ...string) (string, error) {
	t.Helper()
	con := outputtest.New("")
	con.Env = env
	root := &cobra.Command{Use: "dfctl", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(key.Command(con.Console))
	root.SetArgs(append([]string{"key"}, args...))
	root.SetErr(&bytes.Buffer{})
	err := root.ExecuteContext(t.Context())
	return con.Stdout.String(), err
}

func TestKey(t *testing.T) {
	home := t.TempDir()
	env := map[string]string{"HOME": home}
	file := filepath.Join(home, ".config/damselfly/key.pem")

	_, err := run(t, env, "show")
	if code, _ := exit.Code(err); code != exit.NotFound || err.Error() != "there is no key "+file+": make one with dfctl key create" {
		t.Errorf("show without a key: %v", err)
	}

	created, err := run(t, env, "create")
	if err != nil {
		t.Fatal(err)
	}
	k, err := trust.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	public, err := k.Public().MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	want := "id:    " + k.ID() + "\nfile:  " + file + "\n\n" + string(public)
	if created != want {
		t.Errorf("create printed %q, want %q", created, want)
	}
	if shown, err := run(t, env, "show"); err != nil || shown != want {
		t.Errorf("show printed %q, %v", shown, err)
	}
	if exported, err := run(t, env, "export"); err != nil || exported != string(public) {
		t.Errorf("export printed %q, %v", exported, err)
	}
	if _, err := run(t, env, "create"); err == nil || !strings.HasPrefix(err.Error(), file+" exists and is left alone: show it with dfctl key show --key "+file) {
		t.Errorf("create again: %v", err)
	}
	if again, err := trust.Load(file); err != nil || again.ID() != k.ID() {
		t.Errorf("the key has changed: %v, %v", again, err)
	}
}

func TestExportToFile(t *testing.T) {
	dir := t.TempDir()
	private, public := filepath.Join(dir, "ci-private.pem"), filepath.Join(dir, "ci.pem")
	if _, err := run(t, nil, "create", "--out", private); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds what it would write
		if out, err := run(t, nil, "export", "--key", private, "--out", public); err != nil || !strings.HasSuffix(out, "written to:  "+public+"\n") {
			t.Fatalf("%q, %v", out, err)
		}
	}
	data, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := trust.ParsePublicKeys(data); err != nil || len(keys) != 1 {
		t.Errorf("%v, %v", keys, err)
	}
	if info, err := os.Stat(public); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := run(t, nil, "export", "--key", private, "--out", private); err == nil || !strings.Contains(err.Error(), private+" exists with other content and is left alone") {
		t.Errorf("export over the private key: %v", err)
	}
	if _, err := trust.Load(private); err != nil {
		t.Error(err)
	}
}

func TestJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key.pem")
	for _, args := range [][]string{
		{"create", "--out", file}, {"show", "--key", file}, {"export", "--key", file}, {"export", "--key", file, "--out", file + ".pub"},
	} {
		out, err := run(t, nil, append(args, "-o", "json")...)
		if err != nil {
			t.Fatal(err)
		}
		var document key.Exported
		dec := json.NewDecoder(strings.NewReader(out))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&document); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		keys, err := trust.ParsePublicKeys([]byte(document.PublicKey))
		if err != nil || len(keys) != 1 || keys[0].ID() != document.ID || document.File != file || (document.PublicFile != "") != (len(args) == 5) {
			t.Errorf("%v printed %s: %v", args, out, err)
		}
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	open, good := filepath.Join(dir, "open.pem"), filepath.Join(dir, "good.pem")
	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Create(good); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"name the key's file":    {"show"},
		"run: chmod 600 " + open: {"show", "--key", open},
		"create key: ":           {"create", "--out", open + "/k.pem"},
		"unknown command":        {"show", "x"},
		"no such file":           {"export", "--key", good, "--out", filepath.Join(dir, "none", "k")},
	} {
		out, err := run(t, nil, args...)
		if err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%v: %q, %v, want %q", args, out, err, want)
		}
	}
}

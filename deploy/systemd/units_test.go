package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// programs are those that the units start, in /usr/local/bin.
var programs = regexp.MustCompile(`/usr/local/bin/[a-z]+`)

func units(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.service")
	if err != nil || len(names) == 0 {
		t.Fatalf("found %d units, %v", len(names), err)
	}
	return names
}

// settings returns the values of each key of a unit.
func settings(t *testing.T, unit string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			values[key] = append(values[key], value)
		}
	}
	return values
}

// TestVerify has systemd read the units, with programs that exist.
func TestVerify(t *testing.T) {
	testenv.Integration(t)
	analyze := testenv.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, unit := range units(t) {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, unit)
		if err := os.WriteFile(path, programs.ReplaceAll(text, []byte("/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		// Of the machine's own units it may complain as well.
		newer := strings.Contains(line, "FileDescriptorStorePreserve")
		if strings.Contains(line, dir) && !newer {
			t.Error(strings.TrimSpace(line))
		}
	}
}

// TestMountsAreSeen fails for settings that give the snapshotter a mount
// namespace: containerd would not see its mounts.
func TestMountsAreSeen(t *testing.T) {
	for key := range settings(t, "damselfly-snapshotter.service") {
		hides := slices.ContainsFunc([]string{"Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "Temporary", "Root", "Mount", "Exec"}, func(prefix string) bool {
			return strings.HasPrefix(key, prefix) && key != "ExecStart" && key != "ProtectHostname"
		})
		if hides {
			t.Errorf("%s hides the snapshotter's mounts from containerd", key)
		}
	}
}

// TestIndependence fails when one unit's stop or restart would carry another
// along: readers of lazy images then get errors.
func TestIndependence(t *testing.T) {
	for _, unit := range units(t) {
		values := settings(t, unit)
		for _, key := range []string{"Requires", "BindsTo", "PartOf", "Requisite", "Upholds", "PropagatesStopTo", "StopPropagatedFrom"} {
			if values[key] != nil {
				t.Errorf("%s: %s=%v", unit, key, values[key])
			}
		}
		if got := values["Restart"]; !slices.Equal(got, []string{"always"}) {
			t.Errorf("%s: Restart=%v", unit, got)
		}
	}
	for _, value := range settings(t, "damselfly-snapshotter.service")["Before"] {
		if !strings.Contains(value, "containerd.service") {
			t.Errorf("the snapshotter starts before %s only", value)
		}
	}
}

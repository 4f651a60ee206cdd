package confdoc

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/dfdaemon" //nolint:depguard // what is documented is above what documents it
	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/snapshotter" //nolint:depguard // as above
	"github.com/damselfly-io/damselfly/supernode"   //nolint:depguard // as above
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

const (
	root      = "../.."
	reference = root + "/docs/configuration.md"
)

const head = `<!-- Written by: go test ./internal/confdoc -update. Do not edit. -->

# Configuration reference

Every setting is a key of the daemon's YAML file (` + "`--config FILE`" + `) and a flag of
the same name. A flag wins over the file, the file over the default. An unknown
key, a repeated one and a value of another type are errors, with file and line.

- **Lists**: in a file a YAML list (` + "`[a, b]`" + `); as a flag repeated, or separated by
  commas.
- **Sizes**: a number of bytes, or with a unit: ` + "`64KiB`, `16MiB`, `50GiB`, `1TB`" + `.
- **Rates**: a size per second: ` + "`100MiB`" + ` is 100 MiB/s, 0 no limit.
- **Durations**: ` + "`500ms`, `30s`, `2h`" + `.

A file is read once, at start. See [configure.md](configure.md) for which of these
to set when.
`

// document returns docs/configuration.md as it should be.
func document() string {
	var b strings.Builder
	b.WriteString(head)
	for _, d := range []struct {
		name   string
		config any
	}{{"supernode", supernode.Config{}}, {"dfdaemon", dfdaemon.Config{}}, {"snapshotter", snapshotter.Config{}}, {"snapshotter keeper", snapshotter.KeeperConfig{}}} {
		fmt.Fprintf(&b, "\n## %s\n\n%s", d.name, config.Markdown(d.config))
	}
	return b.String()
}

func TestReferenceIsUpToDate(t *testing.T) {
	want := document()
	if *update {
		if err := os.WriteFile(reference, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/configuration.md is out of date: run go test ./internal/confdoc -update")
	}
}

func TestDeployedConfigurationLoads(t *testing.T) {
	for name, dst := range map[string]any{"supernode.yaml": &supernode.Config{}, "dfdaemon.yaml": &dfdaemon.Config{}} {
		t.Run(name, func(t *testing.T) {
			b, err := config.Bind(pflag.NewFlagSet(name, pflag.ContinueOnError), dst)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Load(filepath.Join(root, "deploy", "systemd", name)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestConfigurationInGuidesLoads reads the YAML blocks of the guides that begin
// with "# supernode.yaml" or "# dfdaemon.yaml".
func TestConfigurationInGuidesLoads(t *testing.T) {
	block := regexp.MustCompile("(?ms)^```yaml\n# (supernode|dfdaemon)\\.yaml.*?^```$")
	guides, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, guide := range guides {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			found++
			body := bytes.TrimSuffix(bytes.TrimPrefix(m[0], []byte("```yaml\n")), []byte("```"))
			if err := load(t, string(m[1]), body); err != nil {
				t.Errorf("%s: %v\n%s", filepath.Base(guide), err, body)
			}
		}
	}
	if found == 0 {
		t.Error("found no block to check")
	}
}

func load(t *testing.T, daemon string, yaml []byte) error {
	t.Helper()
	var dst any = &dfdaemon.Config{}
	if daemon == "supernode" {
		dst = &supernode.Config{}
	}
	file := filepath.Join(t.TempDir(), daemon+".yaml")
	if err := os.WriteFile(file, yaml, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := config.Bind(pflag.NewFlagSet(daemon, pflag.ContinueOnError), dst)
	if err != nil {
		t.Fatal(err)
	}
	return b.Load(file)
}

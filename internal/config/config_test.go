package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/internal/config"
)

type tls struct {
	Cert string `config:"cert" help:"Certificate file."`
}

type daemon struct {
	config.Log
	DataDir  string        `config:"data-dir" default:"/var/lib/x" env:"DAMSELFLY_TEST_DATA_DIR" help:"Where state is kept."`
	Peers    int           `config:"peers" default:"8" help:"Peers at once."`
	Total    int64         `config:"total" default:"16" unit:"pieces" help:"Total | pieces."`
	Share    float64       `config:"share" default:"0.5" help:"Share of the disk."`
	Verify   bool          `config:"verify" default:"true" help:"Verify."`
	Timeout  time.Duration `config:"timeout" default:"30s" help:"Time limit."`
	Cache    config.Size   `config:"cache-size" default:"10GiB" help:"Cache bound."`
	Limit    config.Rate   `config:"upload-rate" default:"200Mbit" help:"Upload bound."`
	Allow    []string      `config:"allow" default:"docker.io,quay.io" help:"Registries."`
	TLS      tls           `config:"tls"`
	Internal chan int      `config:"-"`
}

func (d *daemon) Validate() error {
	if d.Peers == 13 {
		return errors.New("peers: 13 is unlucky")
	}
	return nil
}

func defaults() daemon {
	return daemon{
		Log:     config.Log{Level: "info", Format: "text"},
		DataDir: "/var/lib/x", Peers: 8, Total: 16, Share: 0.5, Verify: true, Timeout: 30 * time.Second,
		Cache: 10 << 30, Limit: 25e6, Allow: []string{"docker.io", "quay.io"},
	}
}

// load binds a fresh daemon, parses args, and loads the YAML text if any.
func load(t *testing.T, text string, args ...string) (daemon, error) {
	t.Helper()
	var d daemon
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	b, err := config.Bind(fs, &d)
	if err != nil {
		t.Fatal(err)
	}
	if text != "" {
		file := filepath.Join(t.TempDir(), "x.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", file)
	}
	if err := fs.Parse(args); err != nil {
		return d, err
	}
	return d, b.Load(b.File())
}

func TestDefaults(t *testing.T) {
	got, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if want := defaults(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestEveryKeyFromFile(t *testing.T) {
	want := daemon{
		Log:     config.Log{Level: "debug", Format: "json"},
		DataDir: "/d", Peers: 3, Total: 4, Share: 0.25, Verify: false, Timeout: time.Minute,
		Cache: 5e6, Limit: 7 << 20, Allow: []string{"a,b", "c"}, TLS: tls{Cert: "007"},
	}
	got, err := load(t, `
log-level: debug
log-format: json
data-dir: "/d"
peers: 3
total: 4
share: 0.25
verify: false
timeout: 1m
cache-size: 5MB
upload-rate: 7MiB/s
allow:
  - a,b
  - c
tls-cert: 007
`)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestEveryKeyFromFlags(t *testing.T) {
	want := daemon{
		Log:     config.Log{Level: "warn", Format: "json"},
		DataDir: "/e", Peers: 5, Total: 6, Share: 0.75, Verify: false, Timeout: time.Hour,
		Cache: 123, Limit: 1000, Allow: []string{"a", "b", "c"}, TLS: tls{Cert: "f"},
	}
	got, err := load(t, "", "--log-level=warn", "--log-format=json", "--data-dir=/e", "--peers=5", "--total=6",
		"--share=0.75", "--verify=false", "--timeout=1h", "--cache-size=123", "--upload-rate=8kbit",
		"--allow=a,b", "--allow", "c", "--tls-cert=f")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestPrecedence(t *testing.T) {
	const file = "data-dir: /file\n"
	tests := []struct {
		name, env, file string
		args            []string
		want            string
	}{
		{name: "default", want: "/var/lib/x"},
		{name: "file over default", file: file, want: "/file"},
		{name: "environment over file", file: file, env: "/env", want: "/env"},
		{name: "flag over environment", file: file, env: "/env", args: []string{"--data-dir=/flag"}, want: "/flag"},
		{name: "flag equal to default over file", file: file, args: []string{"--data-dir=/var/lib/x"}, want: "/var/lib/x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("DAMSELFLY_TEST_DATA_DIR", tt.env)
			got, err := load(t, tt.file, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got.DataDir != tt.want {
				t.Errorf("got %q, want %q", got.DataDir, tt.want)
			}
		})
	}
}

func TestErrorsNameKeyPlaceAndWhatIsAccepted(t *testing.T) {
	tests := []struct {
		name, file string
		args       []string
		want       []string
	}{
		{name: "unknown key", file: "peers: 1\n\nnonsense: 2\n", want: []string{`x.yaml:3: unknown key "nonsense"`}},
		{name: "mistyped key", file: "data_dir: /d\n", want: []string{`x.yaml:1: unknown key "data_dir" (did you mean "data-dir"?)`}},
		{name: "repeated key", file: "peers: 1\npeers: 1\n", want: []string{`x.yaml:2: key "peers" is already set on line 1`}},
		{name: "all at once", file: "a: 1\nb: 2\n", want: []string{`x.yaml:1: unknown key "a"`, `x.yaml:2: unknown key "b"`}},
		{name: "no value", file: "data-dir:\n", want: []string{"x.yaml:1: data-dir: has no value"}},
		{name: "mapping for a value", file: "tls-cert: {a: b}\n", want: []string{"x.yaml:1: tls-cert: want a single value"}},
		{name: "value for a list", file: "allow: a\n", want: []string{"x.yaml:1: allow: want a list"}},
		{name: "nested list", file: "allow: [[a]]\n", want: []string{"x.yaml:1: allow: list entry: want a single value"}},
		{name: "list at the root", file: "- a\n", want: []string{"x.yaml:1: want lines of the form"}},
		{name: "second document", file: "peers: 1\n---\npeers: 2\n", want: []string{"second YAML document"}},
		{name: "syntax", file: "peers: [\n", want: []string{"parse ", "x.yaml", "line"}},
		{name: "merge key", file: "<<: {peers: 1}\n", want: []string{`unknown key "<<"`}},
		{name: "bool", file: "verify: yes\n", want: []string{`verify: "yes": want true or false`}},
		{name: "int", file: "peers: 1.5\n", want: []string{`peers: "1.5": want a whole number`}},
		{name: "int64", file: "total: 99999999999999999999\n", want: []string{"total:", "want a whole number"}},
		{name: "float", file: "share: .nan\n", want: []string{`share: ".nan": want a number`}},
		{name: "duration", file: "timeout: 30\n", want: []string{`timeout: "30": want a duration such as`}},
		{name: "size", file: "cache-size: 10Mb\n", want: []string{`cache-size: unknown unit in "10Mb": want a size such as`}},
		{name: "rate", file: "upload-rate: fast\n", want: []string{"upload-rate:", "want a rate such as"}},
		{name: "one of", file: "log-format: xml\n", want: []string{`log-format: "xml" is not accepted: want text or json`}},
		{name: "bad file value under a flag", file: "peers: x\n", args: []string{"--peers=1"}, want: []string{`x.yaml:1: peers: "x"`}},
		{name: "flag", args: []string{"--timeout=soon"}, want: []string{"--timeout", `"soon": want a duration`}},
		{name: "validation", file: "peers: 13\n", want: []string{"13 is unlucky"}},
		{name: "missing file", args: []string{"--config=/does/not/exist.yaml"}, want: []string{"read configuration: open /does/not/exist.yaml"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.file, tt.args...)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not contain %q", err, want)
				}
			}
		})
	}
}

func TestBadEnvironment(t *testing.T) {
	type c struct {
		N int `config:"n" env:"DAMSELFLY_TEST_N" help:"Number."`
	}
	t.Setenv("DAMSELFLY_TEST_N", "many")
	b, err := config.Bind(pflag.NewFlagSet("x", pflag.ContinueOnError), &c{})
	if err != nil {
		t.Fatal(err)
	}
	err = b.Load("")
	if err == nil || !strings.Contains(err.Error(), `environment variable DAMSELFLY_TEST_N (key n): "many": want a whole number`) {
		t.Errorf("got %v", err)
	}
}

func TestEmptyFile(t *testing.T) {
	for _, text := range []string{"\n", "# only a comment\n", "---\n"} {
		got, err := load(t, text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if want := defaults(); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

func TestBindRefusesBadStructs(t *testing.T) {
	tests := []struct {
		name string
		dst  any
		want string
	}{
		{"no pointer", daemon{}, "pointer to a struct"},
		{"untagged field", &struct{ A string }{}, "kebab-case"},
		{"bad key", &struct {
			A string `config:"aB" help:"h"`
		}{}, "kebab-case"},
		{"no help", &struct {
			A string `config:"a"`
		}{}, "no help"},
		{"unsupported type", &struct {
			A uint8 `config:"a" help:"h"`
		}{}, "not supported"},
		{"bad default", &struct {
			A int `config:"a" default:"x" help:"h"`
		}{}, "default of key a"},
		{"default outside oneof", &struct {
			A string `config:"a" default:"x" oneof:"y,z" help:"h"`
		}{}, "want y or z"},
		{"repeated key", &struct {
			A string `config:"a" help:"h"`
			B string `config:"a" help:"h"`
		}{}, "taken"},
		{"key config", &struct {
			A string `config:"config" help:"h"`
		}{}, "taken"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Bind(pflag.NewFlagSet("x", pflag.ContinueOnError), tt.dst)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestFlagHelp(t *testing.T) {
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	if _, err := config.Bind(fs, &daemon{}); err != nil {
		t.Fatal(err)
	}
	usage := fs.FlagUsages()
	for _, want := range []string{
		"--cache-size size", "(default 10GiB)", "--upload-rate rate", "(default 25MB/s)", "--allow list",
		"(default docker.io,quay.io)", "[pieces]", "Environment: DAMSELFLY_TEST_DATA_DIR.", "--config FILE", "--verify ",
	} {
		if !strings.Contains(usage, want) {
			t.Errorf("usage lacks %q:\n%s", want, usage)
		}
	}
}

func TestExampleLoadsAndChangesNothing(t *testing.T) {
	got, err := load(t, config.Example(daemon{}))
	if err != nil {
		t.Fatalf("%v\n%s", err, config.Example(daemon{}))
	}
	want := defaults()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestMarkdown(t *testing.T) {
	set := daemon{Peers: 99}
	table := config.Markdown(&set)
	for _, want := range []string{
		"| Key | Flag | Default | Unit | Meaning |\n|---|---|---|---|---|\n",
		"| `data-dir` | `--data-dir` | `/var/lib/x` |  | Where state is kept. Environment: `DAMSELFLY_TEST_DATA_DIR`. |\n",
		"| `total` | `--total` | `16` | pieces | Total \\| pieces. |\n",
		"| `upload-rate` | `--upload-rate` | `200Mbit` | bytes per second | Upload bound. |\n",
		"| `tls-cert` | `--tls-cert` |  |  | Certificate file. |\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("table lacks %q:\n%s", want, table)
		}
	}
	if set.Peers != 99 {
		t.Error("describing a configuration changed it")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("peers: 3\nallow: [a, b]\n")
	f.Add("a: &x [*x]\nallow: *x\n")
	f.Add("? [complex]\n: value\n")
	f.Fuzz(func(t *testing.T, text string) {
		// Only the absence of panics and hangs is checked here.
		_, _ = load(t, text)
	})
}

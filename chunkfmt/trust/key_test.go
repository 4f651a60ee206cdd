package trust_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
)

// vector is the key pair of the first test of RFC 8032, section 7.1.
const (
	vectorPrivate = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n"
	vectorPublic  = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"
	vectorID      = "06e3fd8fda29bb60"
)

func TestVector(t *testing.T) {
	k, err := trust.ParsePrivateKey([]byte(vectorPrivate))
	if err != nil {
		t.Fatal(err)
	}
	private, err := k.MarshalPEM()
	if err != nil || string(private) != vectorPrivate || pemOf(t, k) != vectorPublic || k.ID() != vectorID {
		t.Errorf("%s%s%s, %v", private, pemOf(t, k), k.ID(), err)
	}
	keys, err := trust.ParsePublicKeys([]byte(" \n" + vectorPublic + vectorPublic))
	if err != nil || len(keys) != 2 || !keys[0].Equal(k.Public()) || !keys[0].Equal(keys[1]) || keys[0].String() != vectorID {
		t.Errorf("%v, %v", keys, err)
	}
}

func TestOpenSSLReadsKeys(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl")
	}
	cmd := exec.Command("openssl", "pkey", "-pubout")
	cmd.Stdin = strings.NewReader(vectorPrivate)
	if out, err := cmd.Output(); err != nil || string(out) != vectorPublic {
		t.Errorf("%s, %v", out, err)
	}
}

func TestParseKeyErrors(t *testing.T) {
	const ec = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n-----END PUBLIC KEY-----\n"
	for _, tt := range []struct{ private, public, want string }{
		{"", "", "no PEM"},
		{"x", "x", "want PEM and nothing else"},
		{vectorPrivate + "x", vectorPublic + "x", "want PEM and nothing else"},
		{vectorPrivate + vectorPrivate, "", "2 keys"},
		{vectorPublic, "", `want "PRIVATE KEY"`},
		{"", vectorPrivate, ""},
		{strings.Replace(vectorPrivate, "-----END", "----END", 1), strings.Replace(vectorPublic, "-----END", "----END", 1), "broken PEM"},
		{strings.Replace(vectorPrivate, "MC4", "!", 1) + vectorPrivate, strings.Replace(vectorPublic, "MC", "!", 1) + vectorPublic, "broken PEM"},
		{strings.Replace(vectorPrivate, "MC4C", "MC4D", 1), strings.Replace(vectorPublic, "MCow", "MCox", 1), "unusable key: "},
		{strings.ReplaceAll(vectorPrivate, "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), ec, ""},
		{strings.ReplaceAll(vectorPrivate, "PRIVATE KEY", "RSA PRIVATE KEY"), strings.ReplaceAll(vectorPublic, "PUBLIC", "RSA PUBLIC"), "PEM type is"},
		{strings.Repeat("x", trust.MaxFile+1), strings.Repeat("x", trust.MaxFile+1), "at most 1048576"},
	} {
		if _, err := trust.ParsePrivateKey([]byte(tt.private)); !errors.Is(err, trust.ErrKey) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("private %.80q: got error %v, want %q", tt.private, err, tt.want)
		}
		if tt.public == "" && tt.private != "" {
			continue
		}
		if _, err := trust.ParsePublicKeys([]byte(tt.public)); !errors.Is(err, trust.ErrKey) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("public %.80q: got error %v, want %q", tt.public, err, tt.want)
		}
	}
}

func TestPrivateKeyIsNotPrinted(t *testing.T) {
	k, err := trust.ParsePrivateKey([]byte(vectorPrivate))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "copy", *k, "in", struct{ K any }{k})
	document, err := json.Marshal(struct{ K any }{k})
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{log.String(), string(document)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, k), fmt.Sprintf(verb, *k), fmt.Sprintf(verb, []any{k, *k}))
	}
	for _, text := range texts {
		for _, secret := range []string{"9d61b1", "157 97", "9d, 0x61", "nWGx"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q has the key", text)
			}
		}
	}
}

func TestDefaultKeyFile(t *testing.T) {
	for _, tt := range []struct{ xdg, home, want string }{
		{"/x", "/h", "/x/damselfly/key.pem"},
		{"", "/h", "/h/.config/damselfly/key.pem"},
		{"relative", "/h", "/h/.config/damselfly/key.pem"},
		{"", "", ""},
	} {
		got, err := trust.DefaultKeyFile(func(name string) string {
			return map[string]string{"XDG_CONFIG_HOME": tt.xdg, "HOME": tt.home}[name]
		})
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%+v: %s, %v", tt, got, err)
		}
	}
}

func TestLoadOrCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	file := filepath.Join(dir, "key.pem")
	const callers = 8
	var wg sync.WaitGroup
	ids, made := make([]string, callers), make([]bool, callers)
	for i := range callers {
		wg.Go(func() {
			k, created, err := trust.LoadOrCreate(file)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i], made[i] = k.ID(), created
		})
	}
	wg.Wait()
	count := 0
	for i := range callers {
		if ids[i] != ids[0] {
			t.Errorf("different keys: %v", ids)
		}
		if made[i] {
			count++
		}
	}
	if count != 1 {
		t.Errorf("%d callers made the key", count)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	if _, err := trust.Create(file); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), file) {
		t.Errorf("create again: %v", err)
	}
	if k, err := trust.Load(file); err != nil || k.ID() != ids[0] {
		t.Errorf("%v, %v", k, err)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte, mode fs.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		write("group", []byte(vectorPrivate), 0o440):            "",
		write("world", []byte(vectorPrivate), 0o644):            "chmod 600",
		write("writable", []byte(vectorPrivate), 0o620):         "chmod 600",
		write("large", make([]byte, trust.MaxFile+1), 0o600):    "more than 1048576 bytes",
		write("public", []byte(vectorPublic), 0o600):            "PEM type is",
		write("encrypted", []byte(encrypted(vectorPrivate)), 0): "openssl pkey",
		dir:                         "not a regular file",
		pipe:                        "not a regular file",
		filepath.Join(dir, "none"):  "no such file",
		filepath.Join(pipe, "none"): "not a directory",
	} {
		_, err := trust.Load(file)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file)) {
			if os.IsPermission(err) {
				continue // not root
			}
			t.Errorf("%s: got error %v, want %q", file, err, want)
		}
		if _, _, again := trust.LoadOrCreate(file); want != "" && want != "no such file" && again == nil {
			t.Errorf("%s: replaced", file)
		}
	}
}

func encrypted(key string) string {
	return strings.ReplaceAll(key, "PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
}

func TestLoadPolicy(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string) string {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	a, b := newKey(t), newKey(t)
	absolute := write("one.pem", vectorPublic)
	write("trust.d/a.pem", pemOf(t, a))
	write("trust.d/b.pem", pemOf(t, b))
	write("trust.d/notes.txt", "no key")
	write("trust.d/.a.pem.swp", "no key")
	write("trust.d/old.pem/x", "a directory")
	file := write("trust.yaml", "keys:\n- "+absolute+"\n- trust.d/*.pem\n- trust.d/*.none\nunsigned: [r.io/dev/*]\n")
	p, err := trust.LoadPolicy(file)
	if err != nil || len(p.Keys()) != 3 || !p.Unsigned("r.io/dev/x") {
		t.Fatalf("%+v, %v", p, err)
	}
	for text, want := range map[string]string{
		"keys: [none.pem]":          filepath.Join(dir, "none.pem"),
		"keys: [none.d/*.pem]":      filepath.Join(dir, "none.d"),
		"keys: ['trust.d/[*']":      "syntax error in pattern",
		"keys: [trust.d]":           "not a regular file",
		"keys: [trust.d/notes.txt]": "notes.txt: unusable key",
		"key: []":                   "bad.yaml:1: unknown key",
		"unsigned: [dev/*]":         "bad.yaml: trust.unsigned: ",
	} {
		if _, err := trust.LoadPolicy(write("bad.yaml", text)); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "read trust policy") {
			t.Errorf("%s: got error %v, want %q", text, err, want)
		}
	}
	if _, err := trust.LoadPolicy(filepath.Join(dir, "none.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(vectorPublic))
	f.Add([]byte(vectorPrivate))
	f.Add([]byte("-----BEGIN \n-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := trust.ParsePrivateKey(data); err == nil {
			again, err := k.MarshalPEM()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := trust.ParsePrivateKey(again); err != nil {
				t.Fatal(err)
			}
		} else if !errors.Is(err, trust.ErrKey) {
			t.Fatal(err)
		}
		keys, err := trust.ParsePublicKeys(data)
		if (err == nil) != (len(keys) > 0) || err != nil && !errors.Is(err, trust.ErrKey) {
			t.Fatalf("%v, %v", keys, err)
		}
	})
}

package origin

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func writeFile(t *testing.T, path, data string) {
	t.Helper()
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestDockerConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	writeFile(t, path, fmt.Sprintf(`{
		"auths": {
			"https://index.docker.io/v1/": {"auth": %q},
			"GHCR.io": {"username": "gu", "password": "g:p"},
			"https://reg.test:5000/v2/": {"auth": %q},
			"reg.test:443": {"auth": %q},
			"token.test": {"registrytoken": "rt"},
			"identity.test": {"auth": %q, "identitytoken": "hunter2"},
			"store.test": {},
			"path.test/team": {"auth": %q},
			"bad64.test": {"auth": "hunter2%%"},
			"nocolon.test": {"auth": %q},
			"helper.test": {"auth": %q}
		},
		"credHelpers": {"helper.test": "ecr-login"},
		"credsStore": "desktop",
		"unknown": [1]
	}`, b64("du:dp"), strings.TrimRight(b64("ru:rp\x00\x00"), "="), b64("su:s:p"), b64("u:"), b64("a:b"), b64("hunter2"), b64("a:b")))
	k := DockerConfig(path)
	tests := []struct {
		host string
		want Credential
		ok   bool
		err  string
	}{
		{"docker.io", Credential{Username: "du", Password: "dp"}, true, ""},
		{"registry-1.docker.io", Credential{Username: "du", Password: "dp"}, true, ""},
		{"index.docker.io", Credential{Username: "du", Password: "dp"}, true, ""},
		{"ghcr.io", Credential{Username: "gu", Password: "g:p"}, true, ""},
		{"reg.test:5000", Credential{Username: "ru", Password: "rp"}, true, ""},
		{"Reg.test", Credential{Username: "su", Password: "s:p"}, true, ""},
		{"reg.test:5001", Credential{}, false, ""},
		{"token.test", Credential{Authorization: "Bearer rt"}, true, ""},
		{"absent.test", Credential{}, false, ""},
		{"path.test", Credential{}, false, ""},
		{"identity.test", Credential{}, false, "identity token"},
		{"store.test", Credential{}, false, `store "desktop"`},
		{"bad64.test", Credential{}, false, "not base64"},
		{"nocolon.test", Credential{}, false, "no colon"},
		{"helper.test", Credential{}, false, `helper "ecr-login"`},
	}
	for _, tt := range tests {
		t.Run(tt.host, func(t *testing.T) {
			got, ok, err := k.Resolve(t.Context(), tt.host)
			if got != tt.want || ok != tt.ok {
				t.Errorf("got the wrong credential (%v, %v)", got, ok)
			}
			switch {
			case tt.err == "" && err != nil, tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), tt.host)):
				t.Errorf("error %v, want %q and the host", err, tt.err)
			case err != nil && strings.Contains(err.Error(), "hunter2"):
				t.Errorf("a secret in: %v", err)
			}
		})
	}
}

func TestDockerConfigIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	k := DockerConfig(dir)
	if _, _, err := k.Resolve(t.Context(), "a.test"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty directory: %v", err)
	}
	path := filepath.Join(dir, ".dockerconfigjson")
	for _, password := range []string{"one", "two"} { // of equal length, within one tick of the clock
		writeFile(t, path, `{"auths":{"a.test":{"auth":"`+b64("u:"+password)+`"}}}`)
		cred, ok, err := k.Resolve(t.Context(), "a.test")
		if err != nil || !ok || cred.Password != password {
			t.Errorf("%s: %v, %v", password, ok, err)
		}
	}
	writeFile(t, path, `{"auths":{"a.test":{"auth":"hunter2`)
	if _, _, err := k.Resolve(t.Context(), "a.test"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("broken file: %v", err)
	}
	writeFile(t, path, strings.Repeat(" ", configSizeLimit+1))
	if _, _, err := k.Resolve(t.Context(), "a.test"); err == nil {
		t.Error("a file beyond the limit was read")
	}
	if _, _, err := DockerConfig(filepath.Join(dir, "none")).Resolve(t.Context(), "a.test"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

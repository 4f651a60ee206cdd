package origin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

const configSizeLimit = 1 << 20

// DockerConfig returns a Keychain that reads a docker config file, which is
// also the format of Kubernetes' .dockerconfigjson secrets. Path is the file,
// or a directory (a mounted secret) with a .dockerconfigjson or config.json in
// it. The file is looked at with every Resolve and read again when it changed;
// it need not exist before.
//
// Only entries with a username and password or a registry token are of use.
// Resolve returns an error, naming the host, for one that is left to a
// credential helper or to an identity token, and for a file that cannot be
// read.
func DockerConfig(path string) Keychain { return &dockerConfig{path: path} }

type dockerConfig struct {
	path string

	mu    sync.Mutex
	seen  fs.FileInfo            // guarded by mu: the file that auths is from
	auths map[string]dockerEntry // guarded by mu: by normalHost
}

// dockerEntry is a credential, or why there is none.
type dockerEntry struct {
	cred Credential
	err  error
}

type dockerFile struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredHelpers map[string]string     `json:"credHelpers"`
	CredsStore  string                `json:"credsStore"`
}

type dockerAuth struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Resolve implements Keychain.
func (d *dockerConfig) Resolve(_ context.Context, registryHost string) (Credential, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refresh(); err != nil {
		return Credential{}, false, fmt.Errorf("docker config: %w", err)
	}
	entry, ok := d.auths[normalHost(registryHost)]
	if !ok {
		return Credential{}, false, nil
	}
	if entry.err != nil {
		return Credential{}, false, fmt.Errorf("docker config %s: %w", d.path, entry.err)
	}
	return entry.cred, true, nil
}

// refresh reads the file if it is not the one seen last. Secrets are replaced
// by renaming, hence the comparison of identity besides time and size. It is
// called with mu held.
func (d *dockerConfig) refresh() error {
	f, info, err := d.open()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	if d.seen != nil && os.SameFile(d.seen, info) && d.seen.ModTime().Equal(info.ModTime()) && d.seen.Size() == info.Size() {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, configSizeLimit+1))
	if err != nil {
		return err
	}
	if len(data) > configSizeLimit {
		return fmt.Errorf("%s is larger than %d bytes", f.Name(), configSizeLimit)
	}
	auths, err := parseDockerConfig(data)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	d.seen, d.auths = info, auths
	return nil
}

func (d *dockerConfig) open() (*os.File, fs.FileInfo, error) {
	var err error
	for _, path := range []string{d.path, filepath.Join(d.path, ".dockerconfigjson"), filepath.Join(d.path, "config.json")} {
		var f *os.File
		if f, err = os.Open(path); err != nil {
			if errors.Is(err, fs.ErrNotExist) && path != d.path {
				continue
			}
			return nil, nil, err
		}
		info, serr := f.Stat()
		if serr == nil && info.Mode().IsRegular() {
			return f, info, nil
		}
		_ = f.Close()
		if serr != nil || !info.IsDir() {
			return nil, nil, fmt.Errorf("%s is not a regular file", path)
		}
	}
	if err == nil {
		err = fmt.Errorf("no configuration in %s", d.path)
	}
	return nil, nil, err
}

// parseDockerConfig returns the entries by normalHost. Of two spellings of one
// host an entry with a credential wins over one without.
func parseDockerConfig(data []byte) (map[string]dockerEntry, error) {
	var file dockerFile
	if err := json.Unmarshal(data, &file); err != nil {
		// The decoder's own message may quote from the document.
		return nil, errors.New("not a docker config: invalid JSON")
	}
	entries := make(map[string]dockerEntry, len(file.Auths))
	for name, auth := range file.Auths {
		host := normalHost(name)
		if strings.Contains(host, "/") {
			continue // for one path of a registry, which Resolve does not know
		}
		entry, ok := readDockerAuth(name, auth, file.CredsStore)
		if have, dup := entries[host]; ok && (!dup || have.err != nil) {
			entries[host] = entry
		}
	}
	for name, helper := range file.CredHelpers {
		// docker prefers the helper to an entry of the same host.
		entries[normalHost(name)] = dockerEntry{err: fmt.Errorf("credentials of %s are left to the helper %q, which is not supported: add an entry with auth", name, helper)}
	}
	return entries, nil
}

func readDockerAuth(name string, auth dockerAuth, store string) (dockerEntry, bool) {
	if auth.RegistryToken != "" {
		return dockerEntry{cred: Credential{Authorization: "Bearer " + auth.RegistryToken}}, true
	}
	cred := Credential{Username: auth.Username, Password: auth.Password}
	if auth.Auth != "" {
		var err error
		if cred, err = decodeDockerAuth(auth.Auth); err != nil {
			return dockerEntry{err: fmt.Errorf("auth of %s: %w", name, err)}, true
		}
	}
	switch {
	case cred.Password != "":
		return dockerEntry{cred: cred}, true
	case auth.IdentityToken != "":
		return dockerEntry{err: fmt.Errorf("%s has an identity token, which is not supported: use a username and password", name)}, true
	case store != "":
		return dockerEntry{err: fmt.Errorf("credentials of %s are left to the store %q, which is not supported: add an entry with auth", name, store)}, true
	case cred.Username != "":
		return dockerEntry{cred: cred}, true
	}
	return dockerEntry{}, false
}

func decodeDockerAuth(s string) (Credential, error) {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(s), "="))
	if err != nil {
		return Credential{}, errors.New("not base64") // the decoder's message tells of the content
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok {
		return Credential{}, errors.New("no colon between username and password")
	}
	return Credential{Username: user, Password: strings.TrimRight(password, "\x00")}, nil
}

// normalHost brings the spellings of a registry to one: scheme, the /v1/ and
// /v2/ of old configurations and the port of https are left out, and Docker
// Hub's names are one.
func normalHost(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimRight(s, "/")
	s = strings.TrimSuffix(strings.TrimSuffix(s, "/v1"), "/v2")
	s = strings.TrimSuffix(s, ":443")
	switch s {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return s
}

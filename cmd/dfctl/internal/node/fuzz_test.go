package node

import (
	"bytes"
	"reflect"
	"testing"
)

func FuzzInsertHost(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "# only a comment", hubBefore, "server = \"x\"", "[host]\n", "[host.a]\n[host.a.header]\nx = 'y'\n",
		"a = \"\"\"\n# x\"\"\"\n# y\n[host.a]\n", "[[x]]\n[host.'b']\n", "host.a.b = 1\n", "\r\n[host.a]\r\n", "x = [\n# c\n]\n[t]\n",
	} {
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, src []byte, timeout bool) {
		h := hostsFile{mirror: "http://127.0.0.1:65001", server: "https://a.example.com", dialTimeout: timeout}
		out, block, err := h.insert(src)
		if err != nil || block == "" {
			return
		}
		was, err := decodeTOML(src)
		if err != nil {
			t.Fatalf("accepted invalid TOML: %v", err)
		}
		is, err := decodeTOML(out)
		if err != nil {
			t.Fatalf("made invalid TOML: %v\n%s", err, out)
		}
		if got := lookup(is, "host", h.mirror); !reflect.DeepEqual(got, any(h.entry())) {
			t.Fatalf("mirror reads as %v", got)
		}
		prune(is, "host", h.mirror)
		if isBlank(src) {
			delete(is, "server")
		}
		prune(was, "host", h.mirror)
		if !reflect.DeepEqual(was, is) {
			t.Fatalf("something else changed: %v, was %v", is, was)
		}
		if first := firstHost(t, out); first != h.mirror {
			t.Fatalf("first host is %q\n%s", first, out)
		}
		back, err := cutHosts(out, block, h)
		if err != nil || !bytes.Equal(back, src) {
			t.Fatalf("cut gives %q (%v), was %q", back, err, src)
		}
	})
}

func firstHost(t *testing.T, src []byte) string {
	t.Helper()
	items, err := tomlItems(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		if len(it.path) >= 2 && it.path[0] == "host" {
			return it.path[1]
		}
	}
	return ""
}

func FuzzSetConfigPath(f *testing.F) {
	for _, seed := range []string{
		"", "version = 2", criSet, "[plugins]\n", "plugins = {}\n", "[plugins.'io.containerd.grpc.v1.cri'.registry] # c",
		"[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '' # c\n", "plugins.\"io.containerd.grpc.v1.cri\".registry.config_path = \"\"\"x\n\"\"\"",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		out, removed, added, err := setConfigPath(src, registryV2, "/c")
		if err != nil {
			return
		}
		key := append(registryV2[:len(registryV2):len(registryV2)], "config_path")
		is, err := decodeTOML(out)
		if err != nil || lookup(is, key...) != "/c" {
			t.Fatalf("%v\n%s", err, out)
		}
		if same, err := sameTOML(src, out, key...); err != nil || !same {
			t.Fatalf("something else changed (%v):\n%s", err, out)
		}
		if back, err := cutConfigPath(out, registryV2, removed, added); err == nil && !bytes.Equal(back, src) {
			t.Fatalf("cut gives %q, was %q", back, src)
		}
	})
}

func FuzzDockerMirror(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "{ }", "{\n}", `{"a":1}`, `{"registry-mirrors":[]}`, `{"registry-mirrors": [ ]}`, `{"registry-mirrors":["a"],"b":[1,2]}`,
		"{\n\t\"b\": 1e400,\n\t\"registry-mirrors\": [\n\t\t\"a\"\n\t]\n}\n", `{"registry-mirrors":null}`, `{"registry-mirrors":[1,{}]}`, `{"":{"registry-mirrors":[]}}`,
	} {
		f.Add([]byte(seed))
	}
	const url = "http://127.0.0.1:65001"
	f.Fuzz(func(t *testing.T, src []byte) {
		out, keyAdded, err := addDockerMirror(src, url)
		if err != nil || bytes.Equal(out, src) {
			return
		}
		is, err := decodeJSON(out)
		if err != nil {
			t.Fatalf("made invalid JSON: %v\n%s", err, out)
		}
		list, _ := is[mirrorsKey].([]any)
		if len(list) == 0 || list[0] != url {
			t.Fatalf("mirrors are %v", list)
		}
		back, err := cutDockerMirror(out, url, keyAdded)
		if err != nil {
			t.Fatalf("cut: %v\n%s", err, out)
		}
		was := map[string]any{}
		if !isBlank(src) {
			if was, err = decodeJSON(src); err != nil {
				t.Fatalf("accepted invalid JSON: %v", err)
			}
		}
		if got, err := decodeJSON(back); err != nil || !reflect.DeepEqual(got, was) {
			t.Fatalf("cut gives %s (%v), was %s", back, err, src)
		}
	})
}

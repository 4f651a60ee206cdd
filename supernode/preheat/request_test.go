package preheat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

func TestRequestsThatAreRefused(t *testing.T) {
	for _, c := range []struct{ body, field, problem string }{
		{`{}`, "type", "missing"},
		{`{"type":"dataset","url":"https://h/x"}`, "type", "want image or file"},
		{`{"type":"image"}`, "ref", "either ref"},
		{`{"type":"image","ref":"a","url":"https://h/v2/a/manifests/b"}`, "ref", "either ref"},
		{`{"type":"image","ref":"a","sha256":"x"}`, "sha256", "for files"},
		{`{"type":"image","ref":"a","platforms":["linux"]}`, "platforms", "OS/ARCH"},
		{`{"type":"image","ref":"a","platforms":["all","linux/amd64"]}`, "platforms", "others"},
		{`{"type":"file"}`, "url", "missing"},
		{`{"type":"file","url":"s3://b/k"}`, "url", "http or https"},
		{`{"type":"file","url":"https://u:p@h/x"}`, "url", "credentials"},
		{`{"type":"file","url":"https://h/x","ref":"a"}`, "ref", "for images"},
		{`{"type":"file","url":"https://h/x","platforms":["all"]}`, "platforms", "for images"},
		{`{"type":"file","url":"https://h/x","sha256":"abc"}`, "sha256", "64 hex"},
		{`{"type":"image","ref":"a","timeout":"soon"}`, "timeout", "duration"},
		{`{"type":"image","ref":"a","timeout":"-1s"}`, "timeout", "want 1s"},
		{`{"type":"image","ref":"a","timeout":"25h"}`, "timeout", "want 1s"},
		{`{"type":"image","ref":"a","credentials":{}}`, "credentials", "either"},
		{`{"type":"image","ref":"a","credentials":{"username":"u","token":"t"}}`, "credentials", "either"},
		{`{"type":"image","ref":"a","credentials":{"token":"a\nb"}}`, "credentials", "line break"},
		{`{"type":"image","ref":"a","scope":"everywhere"}`, "scope", "unknown"},
		{`{"type":"image","ref":"a","scope":{}}`, "scope", "0 of"},
		{`{"type":"image","ref":"a","scope":{"zone":"z","percent":1}}`, "scope", "2 of"},
		{`{"type":"image","ref":"a","scope":{"peers":[]}}`, "scope.peers", "names"},
		{`{"type":"image","ref":"a","scope":{"percent":0}}`, "scope.percent", "1 to 100"},
		{`{"type":"image","ref":"a","scope":{"zone":""}}`, "scope.zone", "empty"},
		{`{"type":"image","ref":"a","scope":{"rack":"r"}}`, "scope", "rack"},
	} {
		var r Request
		err := json.Unmarshal([]byte(c.body), &r)
		if err == nil {
			_, _, err = r.check(nil)
		}
		var bad *InvalidError
		if !errors.As(err, &bad) || bad.Field != c.field || !strings.Contains(bad.Problem, c.problem) {
			t.Errorf("%s: %v, want %s: …%s…", c.body, err, c.field, c.problem)
		}
	}
}

func TestRequestsThatAreTaken(t *testing.T) {
	var r Request
	body := `{"type":"file","url":"https://h/x","sha256":"` + strings.ToUpper(strings.Repeat("ab", 32)) + `","timeout":90,"credentials":{"authorization":"Basic dTpwOnE="}}`
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatal(err)
	}
	s, cred, err := r.check(nil)
	if err != nil || string(s.id) != "sha256:"+strings.Repeat("ab", 32) || s.url != "https://h/x" {
		t.Errorf("check = %+v, %v", s, err)
	}
	if cred != (origin.Credential{Username: "u", Password: "p:q"}) {
		t.Error("Basic authorization is not a username and password")
	}
	if time.Duration(r.Timeout) != 90*time.Second {
		t.Errorf("timeout %s", time.Duration(r.Timeout))
	}
	if s := fmt.Sprintf("%v %+v %#v", r.Credentials, r, *r.Credentials); strings.Contains(s, "dTpwOnE=") {
		t.Errorf("credentials are printed: %s", s)
	}
}

func TestScope(t *testing.T) {
	var peers []tracker.PeerInfo
	for i := range 10 {
		peers = append(peers, tracker.PeerInfo{Name: fmt.Sprintf("n%d", i), Zone: fmt.Sprintf("z%d", i%2)})
	}
	for _, c := range []struct {
		json string
		want int // -1: ErrNoPeers
	}{
		{`"supernode"`, 0}, {`"all_peers"`, 10}, {`{"zone":"z1"}`, 5}, {`{"zone":"z9"}`, -1}, {`{"percent":30}`, 3},
		{`{"percent":1}`, 1}, {`{"percent":100}`, 10}, {`{"peers":["n3","gone","n1","n3"]}`, 3}, {`{"peers":["gone"]}`, -1},
	} {
		var s Scope
		if err := json.Unmarshal([]byte(c.json), &s); err != nil {
			t.Fatal(err)
		}
		if b, err := json.Marshal(s); err != nil || string(b) != c.json {
			t.Errorf("%s is written as %s, %v", c.json, b, err)
		}
		got, err := s.choose(peers, "seed")
		if c.want < 0 != errors.Is(err, ErrNoPeers) || len(got) != max(c.want, 0) || !slices.IsSorted(got) {
			t.Errorf("%s chooses %v, %v; want %d", c.json, got, err, c.want)
		}
	}
	one, _ := Scope{Percent: 30}.choose(peers, "a")
	two, _ := Scope{Percent: 30}.choose(slices.Concat(peers[5:], peers[:5]), "a")
	if !slices.Equal(one, two) {
		t.Errorf("the choice depends on the order: %v, %v", one, two)
	}
	if _, err := (Scope{AllPeers: true}).choose(nil, ""); !errors.Is(err, ErrNoPeers) {
		t.Errorf("all of no nodes: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"type":"image","ref":"ghcr.io/a/b:c","platforms":["linux/amd64"],"scope":{"percent":5},"timeout":"30m","credentials":{"token":"t"}}`,
		`{"type":"file","url":"https://h/x?y=z","scope":"all_peers","timeout":5}`, `{"scope":{"peers":["a"]}}`, `{"scope":null,"timeout":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		if json.Unmarshal(b, &r) != nil {
			return
		}
		if _, _, err := r.check(nil); err != nil {
			return
		}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var again Request
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if second, err := json.Marshal(again); err != nil || !bytes.Equal(out, second) {
			t.Fatalf("%s becomes %s, %v", out, second, err)
		}
	})
}

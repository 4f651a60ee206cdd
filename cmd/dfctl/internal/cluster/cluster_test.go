package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
)

func client(t *testing.T, handler http.Handler, tokenFile string) *Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c, err := Target{Address: strings.TrimPrefix(server.URL, "http://"), TokenFile: tokenFile}.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestErrorsSayWhatToDo(t *testing.T) {
	tests := []struct {
		status  int
		body    string
		code    int
		message string
	}{
		{401, `{"error":{"code":"unauthorized","message":"a token is needed"}}`, exit.Refused, "list peers: a token is needed; give the management token by --token-file or DAMSELFLY_TOKEN_FILE"},
		{403, `{"error":{"code":"forbidden","message":"not from here"}}`, exit.Refused, "list peers: not from here"},
		{404, `{"error":{"code":"not_found","message":"there is no job 7"}}`, exit.NotFound, "list peers: there is no job 7"},
		{500, `{"error":{"code":"internal","message":"oh\u001b[2J"}}`, 0, "list peers: oh\uFFFD[2J"},
		{404, `page not found`, exit.NotFound, "answered 404 Not Found; is it the HTTP address of a supernode?"},
		{302, ``, 0, "answered 302 Found"},
		{200, `<html>`, 0, "read its answer"},
	}
	for _, tt := range tests {
		c := client(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.body)
		}), "")
		_, err := c.Peers(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.message) {
			t.Errorf("%d %s: %v, want %q", tt.status, tt.body, err, tt.message)
		}
		if code, _ := exit.Code(err); code != tt.code {
			t.Errorf("%d: exit code %d, want %d", tt.status, code, tt.code)
		}
	}
}

func TestAbsentSupernode(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	address := server.Listener.Addr().String()
	server.Close()
	c, err := Target{Address: address}.Client()
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Peers(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no supernode listens at http://"+address) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.Peers(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got string
	c := client(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		_, _ = io.WriteString(w, `{"peers":[]}`)
	}), file)
	if _, err := c.Peers(t.Context()); err != nil || got != "Bearer s3cret" {
		t.Errorf("sent %q, %v", got, err)
	}
	for _, bad := range []string{"", "two words", "a\nb"} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (Target{Address: DefaultAddress, TokenFile: file}).Client(); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("token %q: %v", bad, err)
		}
	}
}

func TestAddress(t *testing.T) {
	for _, address := range []string{"", "ftp://h:1", "h:1/path", "u:p@h:1", "h:x", "http://"} {
		if _, err := (Target{Address: address}).Client(); err == nil {
			t.Errorf("accepts %q", address)
		}
	}
	for _, address := range []string{"h:1", "[::1]:8001", "https://h", "http://h:1/"} {
		if _, err := (Target{Address: address}).Client(); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestScope(t *testing.T) {
	for want, s := range map[string]Scope{
		`"supernode"`:         {},
		`"all_peers"`:         {AllPeers: true},
		`{"peers":["a","b"]}`: {Peers: []string{"a", "b"}},
		`{"zone":"z"}`:        {Zone: "z"},
		`{"percent":10}`:      {Percent: 10},
	} {
		b, err := json.Marshal(s)
		if err != nil || string(b) != want {
			t.Errorf("%+v: %s, %v", s, b, err)
		}
		var back Scope
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%s: %+v, %v", b, back, err)
		}
	}
}

func TestFollow(t *testing.T) {
	tests := []struct {
		name, body string
		states     string
		err        error
	}{
		{"to the end", ": alive\n\nevent: progress\ndata: {\"id\":7,\"state\":\"running\"}\n\nevent: done\r\ndata: {\"id\":7,\r\ndata: \"state\":\"partial\"}\r\n\r\n", "running partial", nil},
		{"cut", "data: {\"id\":7,\"state\":\"running\"}\n\ndata: {\"id\":7,\"state\":\"succeeded\"}\n", "running", ErrCut},
		{"nothing", "", "", ErrCut},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := client(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/api/v1/preheats/7/events" {
					t.Errorf("path %s", r.URL.Path)
				}
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, tt.body)
			}), "")
			var states []string
			job, err := c.FollowPreheat(t.Context(), 7, func(j *Job) { states = append(states, j.State) })
			if !errors.Is(err, tt.err) || (err == nil) != (job != nil) {
				t.Errorf("job %v, error %v", job, err)
			}
			if got := strings.Join(states, " "); got != tt.states {
				t.Errorf("states %q, want %q", got, tt.states)
			}
		})
	}
	c := client(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }), "")
	if _, err := c.FollowPreheat(t.Context(), 7, func(*Job) {}); !errors.Is(err, errNoEvents) {
		t.Errorf("error %v", err)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add("event: a\ndata: b\ndata: c\n\n")
	f.Add(": x\r\n\r\ndata\n\n")
	f.Fuzz(func(t *testing.T, s string) {
		err := readEvents(strings.NewReader(s), func(ev event) error {
			if ev.name == "" || strings.Contains(ev.name, "\n") {
				t.Errorf("event name %q", ev.name)
			}
			return nil
		})
		if !errors.Is(err, io.EOF) {
			t.Errorf("error %v", err)
		}
	})
}

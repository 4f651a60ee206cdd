package httpapi

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/preheat"
)

func TestPreheats(t *testing.T) {
	s := newServer(t, nil)
	resp, body := s.do("POST", "/api/v1/preheats", `{"type":"image","ref":"ghcr.io/a/b:c","platforms":["all"],"scope":{"zone":"z"},"timeout":"1m","credentials":{"username":"u","password":"hunter2"}}`)
	if resp.StatusCode != 201 || resp.Header.Get("Location") != "/api/v1/preheats/1" || strings.Contains(body, "hunter2") || !strings.Contains(body, `"id":1`) {
		t.Errorf("POST: %d %s", resp.StatusCode, body)
	}
	got := s.jobs.last()
	want := preheat.Request{
		Type: "image", Ref: "ghcr.io/a/b:c", Platforms: []string{"all"}, Scope: preheat.Scope{Zone: "z"}, Timeout: preheat.Duration(time.Minute),
		Credentials: &preheat.Credentials{Username: "u", Password: "hunter2"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("request %+v, want %+v", got, want)
	}
	s.want(201, "", "POST", "/api/v1/preheats", `{"type":"file","url":"https://h/x"}`)
	if body := s.want(200, "", "GET", "/api/v1/preheats/1", ""); !strings.Contains(body, `"scope":{"zone":"z"}`) {
		t.Errorf("GET: %s", body)
	}
	if body := s.want(200, "", "GET", "/api/v1/preheats?limit=1", ""); !strings.Contains(body, `{"preheats":[{"id":2,`) || strings.Contains(body, `"id":1,`) {
		t.Errorf("list: %s", body)
	}
	if body := s.want(200, "", "DELETE", "/api/v1/preheats/2", ""); !strings.Contains(body, `"state":"cancelled"`) {
		t.Errorf("DELETE: %s", body)
	}
	if body := s.want(200, "", "GET", "/api/v1/preheats?state=pending", ""); !strings.Contains(body, `"id":1,`) || strings.Contains(body, `"id":2,`) {
		t.Errorf("list of pending: %s", body)
	}
	s.want(200, "", "HEAD", "/api/v1/preheats", "")
}

func TestErrors(t *testing.T) {
	s := newServer(t, nil)
	const post, path = "POST", "/api/v1/preheats"
	for _, c := range []struct {
		status             int
		code, method, path string
		body, says         string
	}{
		{400, "invalid_json", post, path, `{`, "ends early"},
		{400, "invalid_json", post, path, `{"type":x}`, "byte 9"},
		{400, "invalid_json", post, path, `{} {}`, "after"},
		{400, "unknown_field", post, path, `{"type":"image","reff":"a"}`, `"reff"`},
		{400, "invalid_request", post, path, `{"type":5}`, "type: want string, not number"},
		{400, "invalid_request", post, path, `{"scope":{"rack":"r"}}`, "scope"},
		{400, "invalid_request", "GET", path + "?limit=0", "", "limit"},
		{413, "too_large", post, path, `{"ref":"` + strings.Repeat("x", maxBody) + `"}`, "1048576"},
		{404, "not_found", "GET", path + "/7", "", "7"},
		{404, "not_found", "GET", path + "/x", "", "numbers"},
		{404, "not_found", "GET", path + "/7/events", "", "7"},
		{404, "not_found", "DELETE", path + "/-1", "", "numbers"},
		{404, "not_found", "GET", "/api/v1/preheat", "", "/api/v1/preheat"},
		{404, "not_found", "GET", "/oapi/v2/jobs", "", "/oapi/v2/jobs"},
		{405, "method_not_allowed", "PUT", path, "", "GET, HEAD, POST"},
		{400, "invalid_request", "GET", "/api/v1/tasks/x", "", "sha256:"},
		{404, "not_found", "GET", "/api/v1/tasks/sha256:" + strings.Repeat("0", 64), "", "holds"},
	} {
		if body := s.want(c.status, c.code, c.method, c.path, c.body); !strings.Contains(body, strings.ReplaceAll(c.says, `"`, `\"`)) {
			t.Errorf("%s %s: %s, want %q in it", c.method, c.path, body, c.says)
		}
	}
	s.want(415, "unsupported_media_type", post, path, `{}`, "Content-Type: text/plain")
	for err, want := range map[error]int{
		&preheat.InvalidError{Field: "f", Problem: "p"}: 400, preheat.ErrNoPeers: 409, preheat.ErrTooMany: 429, preheat.ErrStopping: 503, errors.New("hunter2"): 500,
	} {
		s.jobs.refuse = err
		resp, body := s.do(post, path, `{"type":"image"}`)
		if resp.StatusCode != want || strings.Contains(body, "hunter2") {
			t.Errorf("%v: %d %s, want %d", err, resp.StatusCode, body, want)
		}
	}
}

func TestWithoutTokenOnlyThisMachine(t *testing.T) {
	s := newServer(t, nil)
	s.want(200, "", "GET", "/api/v1/peers", "", "Host: localhost:8001")
	s.want(200, "", "GET", "/api/v1/peers", "", "Host: [::1]:8001")
	s.want(403, "wrong_host", "GET", "/api/v1/peers", "", "Host: rebound.evil.test")
	s.want(403, "local_only", "GET", "/api/v1/peers", "", "X-Forwarded-For: 192.0.2.1")
	s.want(403, "cross_origin", "DELETE", "/api/v1/preheats/1", "", "Origin: https://evil.test")
	s.want(403, "cross_origin", "POST", "/oapi/v1/jobs", "{}", "Sec-Fetch-Site: cross-site")

	mux := http.NewServeMux()
	New(Options{Preheats: s.jobs, Cluster: fakeCluster{}, Store: fakeStore{}}).Register(mux)
	for addr, want := range map[string]int{"127.0.0.1:5": 200, "[::1]:5": 200, "192.0.2.1:5": 403, "": 403, "@": 403} {
		for path, open := range map[string]bool{"/api/v1/peers": false, "/oapi/v1/jobs/1": false, "/api/x": false, "/healthy": true, "/health": true} {
			r := httptest.NewRequestWithContext(t.Context(), "GET", "http://127.0.0.1"+path, nil)
			r.RemoteAddr = addr
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if refused := w.Code == 403; refused != (want == 403 && !open) {
				t.Errorf("%s from %q: %d", path, addr, w.Code)
			}
		}
	}
}

func TestToken(t *testing.T) {
	s := newServer(t, func(o *Options) { o.Token = "the-token-of-the-test" })
	for header, want := range map[string]string{
		"":                                  "token_missing",
		"Authorization: Bearer wrong":       "token_wrong",
		"Authorization: Bearer ":            "token_missing", // the client cuts the space
		"Authorization: Digest x":           "token_missing",
		"Authorization: Basic dTp3cm9uZw==": "token_wrong",
		"Authorization: Bearer the-token-of-the-test":                   "",
		"Authorization: bearer the-token-of-the-test":                   "",
		"Authorization: Basic aGFyYm9yOnRoZS10b2tlbi1vZi10aGUtdGVzdA==": "",
	} {
		status := 401
		if want == "" {
			status = 200
		}
		resp, _ := s.do("GET", "/api/v1/tasks", "", header, "Host: supernode.cluster.test")
		if (resp.Header.Get("WWW-Authenticate") != "") != (status == 401) {
			t.Errorf("%q: WWW-Authenticate %q", header, resp.Header.Get("WWW-Authenticate"))
		}
		s.want(status, want, "GET", "/api/v1/tasks", "", header, "Host: supernode.cluster.test")
		s.want(200, "", "GET", "/healthy", "", header)
	}
}

func TestCluster(t *testing.T) {
	s := newServer(t, nil)
	for path, want := range map[string]string{
		"/api/v1/peers": `{"peers":[{"name":"n1","zone":"z1","address":"10.0.0.1:65002","version":"v1","tasks":2,"quarantined":false},` +
			`{"name":"n2","zone":"z2","address":"10.0.0.2:65002","tasks":0,"quarantined":true}]}`,
		"/api/v1/tasks": `{"tasks":[{"id":"` + string(blobA) + `","cached":{"source":"https://r.test/x","size":33,"pieces":4,"held_pieces":3,"held_bytes":30,` +
			`"complete":false,"in_use":true,"created_at":"2026-01-02T03:04:05Z","last_access":"2026-01-02T03:04:05Z"},"holder_count":2}]}`,
		"/api/v1/tasks/" + string(blobB): `{"id":"` + string(blobB) + `","cached":null,"holder_count":1,"holders":[{"name":"n1","held_bytes":11}]}`,
	} {
		if got := s.want(200, "", "GET", path, ""); strings.TrimSpace(got) != want {
			t.Errorf("%s: %s\nwant %s", path, got, want)
		}
	}
	if got := s.want(200, "", "GET", "/api/v1/tasks/"+string(blobA), ""); !strings.Contains(got, `"holders":[{"name":"n1","held_bytes":11},{"name":"n2","held_bytes":22}]`) {
		t.Error(got)
	}
}

// next reads one event, or a comment as an event without data.
func next(t *testing.T, r *bufio.Scanner) (event string, j preheat.Job) {
	t.Helper()
	for r.Scan() && r.Text() != "" {
		if name, ok := strings.CutPrefix(r.Text(), "event: "); ok {
			event = name
		}
		if data, ok := strings.CutPrefix(r.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &j); err != nil {
				t.Fatal(err)
			}
		}
		if strings.HasPrefix(r.Text(), ":") {
			event = ":"
		}
	}
	return event, j
}

func TestEvents(t *testing.T) {
	s := newServer(t, func(o *Options) { o.KeepAlive = time.Millisecond })
	s.want(201, "", "POST", "/api/v1/preheats", `{"type":"file","url":"https://h/x"}`)
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/api/v1/preheats/1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type %q", ct)
	}
	lines, alive, held := bufio.NewScanner(resp.Body), 0, []int64{}
	for {
		event, j := next(t, lines)
		switch event {
		case ":":
			if alive++; alive == 1 {
				s.jobs.set(1, func(j *preheat.Job) { j.State, j.Totals.BytesHeld = preheat.Running, 5 })
			}
			continue
		case "progress":
			if held = append(held, j.Totals.BytesHeld); j.Totals.BytesHeld == 5 {
				s.jobs.set(1, func(j *preheat.Job) { j.State, j.Totals.BytesHeld = preheat.Succeeded, 9 })
			}
			continue
		case "done":
			held = append(held, j.Totals.BytesHeld)
		}
		break
	}
	if !slices.Equal(held, []int64{0, 5, 9}) || alive == 0 {
		t.Errorf("bytes held %v, want 0, 5, 9; %d keep-alives", held, alive)
	}
	if lines.Scan() {
		t.Errorf("the stream goes on with %q", lines.Text())
	}
	if _, body := s.do("GET", "/api/v1/preheats/1/events", ""); !strings.HasPrefix(body, "event: done\ndata: {\"id\":1,") {
		t.Errorf("a finished job: %q", body)
	}
}

func TestDescriptionHasEveryRoute(t *testing.T) {
	data, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]yaml.Node `yaml:"paths"`
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	described, coded := map[string]bool{}, map[string]bool{}
	for path, methods := range doc.Paths {
		for method, node := range methods {
			if method == "parameters" {
				continue
			}
			described[strings.ToUpper(method)+" "+path] = true
			var op struct {
				OperationID string               `yaml:"operationId"`
				Summary     string               `yaml:"summary"`
				Responses   map[string]yaml.Node `yaml:"responses"`
			}
			if err := node.Decode(&op); err != nil || op.OperationID == "" || op.Summary == "" || len(op.Responses) == 0 {
				t.Errorf("%s %s is not described: %+v, %v", method, path, op, err)
			}
		}
	}
	for _, r := range New(Options{}).routes() {
		for method := range r.methods {
			coded[method+" "+r.path] = true
		}
	}
	if !maps.Equal(described, coded) {
		t.Errorf("described:\n%v\nin the code:\n%v", slices.Sorted(maps.Keys(described)), slices.Sorted(maps.Keys(coded)))
	}
}

func TestDescriptionIsWhole(t *testing.T) {
	data, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Components map[string]map[string]yaml.Node `yaml:"components"`
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for kind, named := range doc.Components {
		for name := range named {
			ref := fmt.Sprintf("'#/components/%s/%s'", kind, name)
			if kind != "securitySchemes" && !strings.Contains(string(data), ref) {
				t.Errorf("%s is not used", ref)
			}
		}
	}
	for part := range strings.SplitSeq(string(data), "$ref: '#/components/") {
		path, _, ok := strings.Cut(part, "'")
		kind, name, two := strings.Cut(path, "/")
		if ok && two && !strings.Contains(kind, "\n") {
			if _, known := doc.Components[kind][name]; !known {
				t.Errorf("%s is not there", path)
			}
		}
	}
	// Every field of what the code reads and writes is described.
	for schema, v := range map[string]any{"Request": preheat.Request{}, "Job": preheat.Job{}, "Blob": preheat.Blob{}, "Acceleration": preheat.Acceleration{}, "Accelerated": accelerate.Info{}, "Task": taskInfo{}, "DragonflyJob": jobReply{}, "DragonflyTask": jobTask{}} {
		var s struct {
			Properties map[string]yaml.Node `yaml:"properties"`
		}
		node := doc.Components["schemas"][schema]
		if err := node.Decode(&s); err != nil {
			t.Fatal(err)
		}
		fields := map[string]bool{}
		for f := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields[name] = true
		}
		if got, want := slices.Sorted(maps.Keys(s.Properties)), slices.Sorted(maps.Keys(fields)); !slices.Equal(got, want) {
			t.Errorf("%s describes %v, the code has %v", schema, got, want)
		}
	}
}

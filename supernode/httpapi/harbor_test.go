package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/supernode/preheat"
)

// harborJob is what Harbor reads of a job.
type harborJob struct {
	ID        int    `json:"id"`
	CreatedAt string `json:"created_at"`
	UpdatedAt string `json:"updated_at"`
	State     string `json:"state"`
	Result    struct {
		JobStates []struct {
			Error   string `json:"error"`
			Results []struct {
				SuccessTasks []map[string]string `json:"success_tasks"`
				FailureTasks []map[string]string `json:"failure_tasks"`
			} `json:"results"`
		} `json:"job_states"`
	} `json:"result"`
}

func parse(t *testing.T, body string) harborJob {
	t.Helper()
	var j harborJob
	if err := json.Unmarshal([]byte(body), &j); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	for _, at := range []string{j.CreatedAt, j.UpdatedAt} {
		if _, err := time.Parse(time.RFC3339, at); err != nil {
			t.Error(err)
		}
	}
	return j
}

func TestHarborsDragonflyDriver(t *testing.T) {
	s := newServer(t, func(o *Options) { o.Token = "the-token-of-the-test" })
	auth := "Authorization: Bearer the-token-of-the-test"
	s.want(200, "", "GET", "/healthy", "")
	body := s.want(200, "", "POST", "/oapi/v1/jobs", `{"type":"preheat","args":{"type":"image","url":"https://harbor.test/v2/library/app/manifests/v1","tag":"",
		"filtered_query_params":"","headers":{"Authorization":"Bearer hunter2"},"scope":"single_seed_peer","concurrent_count":0,"timeout":0},"scheduler_cluster_ids":[1]}`, auth)
	if j := parse(t, body); j.ID != 1 || j.State != "PENDING" || strings.Contains(body, "hunter2") {
		t.Errorf("submitted: %s", body)
	}
	want := preheat.Request{Type: "image", URL: "https://harbor.test/v2/library/app/manifests/v1", Credentials: &preheat.Credentials{Authorization: "Bearer hunter2"}}
	if got := s.jobs.last(); !reflect.DeepEqual(got, want) {
		t.Errorf("request %+v, want %+v", got, want)
	}
	finished := when.Add(time.Minute)
	s.jobs.set(1, func(j *preheat.Job) {
		j.State, j.FinishedAt, j.Error = preheat.Partial, &finished, "1 of 2 nodes failed"
		j.Blobs = []preheat.Blob{{TaskID: blobA, State: preheat.Succeeded, Peers: []preheat.Peer{
			{Name: "n1", State: preheat.Succeeded}, {Name: "n2", State: preheat.Failed, Error: "disk is full"}, {Name: "n3", State: preheat.Running},
		}}}
	})
	body = s.want(200, "", "GET", "/oapi/v1/jobs/1", "", auth)
	j := parse(t, body)
	if j.State != "FAILURE" || j.UpdatedAt != "2026-01-02T03:05:05Z" || len(j.Result.JobStates) != 1 || j.Result.JobStates[0].Error != "1 of 2 nodes failed" {
		t.Errorf("failed: %s", body)
	}
	r := j.Result.JobStates[0].Results[0]
	if !reflect.DeepEqual(r.SuccessTasks, []map[string]string{
		{"url": string(blobA), "hostname": "supernode", "ip": ""}, {"url": string(blobA), "hostname": "n1", "ip": "10.0.0.1"},
	}) || !reflect.DeepEqual(r.FailureTasks, []map[string]string{
		{"url": string(blobA), "hostname": "n2", "ip": "10.0.0.2", "description": "disk is full"},
	}) {
		t.Errorf("rows: %s", body)
	}
	s.jobs.set(1, func(j *preheat.Job) { j.State = preheat.Succeeded })
	if j := parse(t, s.want(200, "", "GET", "/oapi/v1/jobs/1", "", auth)); j.State != "SUCCESS" {
		t.Errorf("state %s", j.State)
	}
	s.want(404, "not_found", "GET", "/oapi/v1/jobs/2", "", auth)
	s.want(401, "token_missing", "GET", "/oapi/v1/jobs/1", "")
}

func TestStatesForHarbor(t *testing.T) {
	for s, want := range map[preheat.State]string{
		preheat.Pending: "PENDING", preheat.Running: "PENDING", preheat.Succeeded: "SUCCESS", preheat.Partial: "FAILURE",
		preheat.Failed: "FAILURE", preheat.Cancelled: "FAILURE", preheat.TimedOut: "FAILURE",
	} {
		if got := state(preheat.Job{State: s}); got != want {
			t.Errorf("%s is %s, want %s", s, got, want)
		}
	}
}

func TestJobArguments(t *testing.T) {
	s := newServer(t, nil)
	for args, want := range map[string]preheat.Request{
		`{"type":"file","urls":["https://h/x"],"username":"u","password":"p"}`: {Type: "file", URL: "https://h/x", Credentials: &preheat.Credentials{Username: "u", Password: "p"}},
		`{"type":"image","url":"u","scope":"all_seed_peers","platform":"linux/arm64","timeout":60000000000}`: {
			Type: "image", URL: "u", Platforms: []string{"linux/arm64"}, Timeout: preheat.Duration(time.Minute)},
		`{"type":"image","url":"u","scope":"all_peers"}`:                                 {Type: "image", URL: "u", Scope: preheat.Scope{AllPeers: true}},
		`{"type":"image","url":"u","scope":"all_peers","percentage":7}`:                  {Type: "image", URL: "u", Scope: preheat.Scope{Percent: 7}},
		`{"type":"image","url":"u","scope":"all_peers","ips":["10.0.0.2","10.9.9.9"]}`:   {Type: "image", URL: "u", Scope: preheat.Scope{Peers: []string{"n2"}}},
		`{"type":"image","url":"u","headers":{"authorization":"Basic x","X-Other":"y"}}`: {Type: "image", URL: "u", Credentials: &preheat.Credentials{Authorization: "Basic x"}},
	} {
		s.want(200, "", "POST", "/oapi/v1/jobs", `{"type":"preheat","args":`+args+`}`)
		if got := s.jobs.last(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", args, got, want)
		}
	}
	for body, want := range map[string]int{
		`{"type":"gc","args":{}}`: 422,
		`{`:                       422,
		`{"type":"preheat","args":{"type":"image","url":"u","scope":"everywhere"}}`:                   422,
		`{"type":"preheat","args":{"type":"image","url":"u","scope":"all_peers","count":3}}`:          422,
		`{"type":"preheat","args":{"type":"image","url":"u","scope":"all_peers","percentage":101}}`:   422,
		`{"type":"preheat","args":{"type":"image","url":"u","scope":"all_peers","ips":["10.9.9.9"]}}`: 409,
		`{"type":"preheat","args":{"type":"file","urls":["a","b"]}}`:                                  422,
		`{"type":"preheat","args":{"type":"file","url":"a","timeout":-1}}`:                            422,
	} {
		if resp, got := s.do("POST", "/oapi/v1/jobs", body); resp.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", body, resp.StatusCode, got, want)
		}
	}
}

func TestHarborsKrakenDriver(t *testing.T) {
	s := newServer(t, nil)
	s.want(200, "", "GET", "/health", "")
	url := "https://harbor.test/v2/library/app/manifests/v1"
	body := s.want(200, "", "POST", "/registry/notifications", `{"events":[{"id":"1","timestamp":"2026-01-02T03:04:05Z","action":"push","target":{
		"mediaType":"application/vnd.docker.distribution.manifest.v2+json","digest":"x","repository":"library/app","url":"`+url+`","tag":"v1"}},
		{"action":"pull","target":{"url":"`+url+`"}},{"action":"push","target":{"url":"https://harbor.test/v2/library/app/blobs/x"}}]}`,
		"Content-Type: application/vnd.docker.distribution.events.v1+json")
	if strings.TrimSpace(body) != `{"preheats":[1]}` || !reflect.DeepEqual(s.jobs.last(), preheat.Request{Type: "image", URL: url}) {
		t.Errorf("%s: %+v", body, s.jobs.last())
	}
}

func FuzzCreate(f *testing.F) {
	f.Add("/api/v1/preheats", []byte(`{"type":"image","ref":"a","scope":{"percent":3},"credentials":{"token":"t"}}`))
	f.Add("/oapi/v1/jobs", []byte(`{"type":"preheat","args":{"type":"image","headers":{"Authorization":"Basic x"},"scope":"all_peers","ips":["10.0.0.1"]}}`))
	f.Add("/registry/notifications", []byte(`{"events":[{"action":"push","target":{"url":"https://h/v2/a/manifests/b"}}]}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		handle(t, path, body)
	})
}

// handle gives a POST to the API and checks the form of the answer.
func handle(t *testing.T, path string, body []byte) {
	t.Helper()
	mux := http.NewServeMux()
	New(Options{Preheats: newFakePreheats(), Cluster: fakeCluster{}, Store: fakeStore{}}).Register(mux)
	r := httptest.NewRequestWithContext(t.Context(), "POST", "http://127.0.0.1/", bytes.NewReader(body))
	r.URL.Path, r.RemoteAddr = path, "127.0.0.1:1"
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	if w.Code >= 500 || strings.HasPrefix(path, "/api/") && w.Code/100 != 3 && !json.Valid(w.Body.Bytes()) {
		t.Errorf("%q %q: %d %s", path, body, w.Code, w.Body)
	}
}

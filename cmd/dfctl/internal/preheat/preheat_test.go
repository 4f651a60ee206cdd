package preheat_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/preheat"
)

// supernode is a fake with one job, 7, whose history it tells. Every
// connection tells one more part of it and is then cut.
type supernode struct {
	mu        sync.Mutex
	request   map[string]any
	history   [][]cluster.Job
	cancelled bool
	hang      bool // after the history, instead of the cut
}

func (s *supernode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch r.Method + " " + r.URL.Path {
	case "POST /api/v1/preheats":
		if err := json.NewDecoder(r.Body).Decode(&s.request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
		s.write(w, cluster.Job{ID: 7, Type: "image", Ref: "h/r:1", State: cluster.Pending})
	case "GET /api/v1/preheats":
		s.write(w, map[string]any{"preheats": []cluster.Job{finished(cluster.Partial)}})
	case "GET /api/v1/accelerated":
		s.write(w, map[string]any{"accelerated": []cluster.Accelerated{
			{Image: "h/r@sha256:" + hex("1"), Index: "sha256:" + hex("d"), Key: "k", Bytes: 3 << 20},
			{Image: "h/s@sha256:" + hex("2"), Index: "sha256:" + hex("e"), Key: "k", Bytes: 1, Pushed: true},
			{Image: "h/t@sha256:" + hex("3"), Index: "sha256:" + hex("f"), Key: "k", Bytes: 1, PushError: "denied"},
		}})
	case "GET /api/v1/preheats/7":
		s.write(w, finished(cluster.Partial))
	case "DELETE /api/v1/preheats/7":
		s.cancelled = true
		s.write(w, finished(cluster.Cancelled))
	case "GET /api/v1/preheats/7/events":
		w.Header().Set("Content-Type", "text/event-stream")
		if len(s.history) > 0 {
			for _, job := range s.history[0] {
				_, _ = io.WriteString(w, "event: progress\ndata: ")
				s.write(w, job)
				_, _ = io.WriteString(w, "\n")
			}
			s.history = s.history[1:]
		}
		if s.hang {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprintf(w, `{"error":{"code":"not_found","message":"there is no %s"}}`, r.URL.Path)
	}
}

func (s *supernode) write(w io.Writer, v any) { _ = json.NewEncoder(w).Encode(v) }

func hex(c string) string { return strings.Repeat(c, 64) }

// finished is the job with two blobs and two nodes, of which node-b has failed
// unless the state is success.
func finished(state string) cluster.Job {
	good := func(name string, size int64) cluster.BlobPeer {
		return cluster.BlobPeer{Name: name, HeldBytes: size, State: cluster.Succeeded}
	}
	job := cluster.Job{
		ID: 7, Type: "image", Ref: "h/r:1", Scope: cluster.Scope{AllPeers: true}, State: state,
		Totals: cluster.Totals{BytesTotal: 9 << 20, BytesHeld: 9 << 20, BlobsTotal: 2, BlobsDone: 2, PeersTotal: 2, PeersDone: 2},
		Blobs: []cluster.Blob{
			{TaskID: "sha256:" + hex("a"), Digest: "sha256:" + hex("a"), Size: 1 << 20, HeldBytes: 1 << 20, State: cluster.Succeeded,
				Peers: []cluster.BlobPeer{good("node-a", 1<<20), good("node-b", 1<<20)}},
			{TaskID: "sha256:" + hex("b"), Digest: "sha256:" + hex("b"), Size: 2 << 20, HeldBytes: 2 << 20, State: cluster.Succeeded,
				Peers: []cluster.BlobPeer{good("node-a", 2<<20), good("node-b", 2<<20)}},
		},
	}
	if state != cluster.Succeeded {
		job.Blobs[1].Peers[1] = cluster.BlobPeer{Name: "node-b", HeldBytes: 1 << 20, State: cluster.Failed, Error: "disk full"}
		job.Totals.BytesHeld, job.Totals.PeersDone, job.Totals.PeersFailed = 8<<20, 1, 1
	}
	return job
}

func running() cluster.Job {
	job := finished(cluster.Running)
	job.Blobs[1].State, job.Blobs[1].HeldBytes = cluster.Running, 1<<20
	return job
}

func run(ctx context.Context, t *testing.T, s http.Handler, con *outputtest.Console, args ...string) error {
	t.Helper()
	server := httptest.NewServer(s)
	defer server.Close()
	con.Env[cluster.EnvAddress] = server.Listener.Addr().String()
	expired := make(chan time.Time)
	close(expired)
	cmd := preheat.Command(con.Console, preheat.Options{After: func(time.Duration) <-chan time.Time { return expired }})
	cmd.SetArgs(args)
	cmd.SetErr(&bytes.Buffer{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	return cmd.ExecuteContext(ctx)
}

func TestRequest(t *testing.T) {
	tests := []struct{ args, in, want string }{
		{"image h/r:1", "", `{"type":"image","ref":"h/r:1","scope":"supernode"}`},
		{"image h/r:1 --scope all_peers --platform linux/amd64,linux/arm64 --timeout 1h", "",
			`{"type":"image","ref":"h/r:1","scope":"all_peers","platforms":["linux/amd64","linux/arm64"],"timeout":"1h0m0s"}`},
		{"image h/r:1 --accelerate", "", `{"type":"image","ref":"h/r:1","scope":"supernode","accelerate":true}`},
		{"image h/r:1 --peers a,b --username me --password-stdin", "pw\n",
			`{"type":"image","ref":"h/r:1","scope":{"peers":["a","b"]},"credentials":{"username":"me","password":"pw"}}`},
		{"file https://h/x --zone z --sha256 12", "", `{"type":"file","url":"https://h/x","scope":{"zone":"z"},"sha256":"12"}`},
		{"file https://h/x --percent 10", "", `{"type":"file","url":"https://h/x","scope":{"percent":10}}`},
	}
	for _, tt := range tests {
		s, con := &supernode{}, outputtest.New(tt.in)
		if err := run(t.Context(), t, s, con, append(strings.Fields(tt.args), "--no-wait")...); err != nil {
			t.Errorf("%s: %v", tt.args, err)
			continue
		}
		var want map[string]any
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(s.request), fmt.Sprint(want); got != want {
			t.Errorf("%s: sent %s, want %s", tt.args, got, want)
		}
		if con.Stdout.String() != "7\n" {
			t.Errorf("printed %q", &con.Stdout)
		}
	}
}

func TestAcceleration(t *testing.T) {
	for state, fails := range map[string]bool{cluster.Succeeded: false, cluster.Failed: true} {
		job := finished(cluster.Succeeded)
		row := cluster.Acceleration{Image: "sha256:" + hex("c"), State: state, Error: "no tar"}
		if state == cluster.Succeeded {
			row.Index, row.Bytes, row.Error = "sha256:"+hex("d"), 3<<20, ""
		}
		job.Acceleration = []cluster.Acceleration{row}
		s, con := &supernode{history: [][]cluster.Job{{job}}}, outputtest.New("")
		err := run(t.Context(), t, s, con, "image", "h/r:1", "--accelerate")
		if fails != (err != nil) || fails && !strings.Contains(err.Error(), "was not accelerated: job 7: sha256:"+hex("c")+": no tar") {
			t.Errorf("%s: %v", state, err)
		}
		want := "sha256:cccccccccccc  sha256:dddddddddddd  3.0 MiB  succeeded"
		if fails {
			want = "sha256:cccccccccccc  -      -     failed  no tar"
		}
		if !strings.Contains(con.Stdout.String(), want) {
			t.Errorf("%s: printed\n%s", state, &con.Stdout)
		}
	}
}

func TestAccelerated(t *testing.T) {
	con := outputtest.New("")
	if err := run(t.Context(), t, &supernode{}, con, "accelerated"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"sha256:dddddddddddd  3.0 MiB  k    no      h/r@sha256:" + hex("1"), "yes     h/s@", "denied  h/t@",
	} {
		if !strings.Contains(con.Stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, &con.Stdout)
		}
	}
}

func TestFollow(t *testing.T) {
	s, con := &supernode{history: [][]cluster.Job{{running()}, {}, {running(), finished(cluster.Succeeded)}}}, outputtest.New("")
	if err := run(t.Context(), t, s, con, "image", "h/r:1"); err != nil {
		t.Fatal(err)
	}
	const want = `job:    7
image:  h/r:1
scope:  all_peers
state:  succeeded

BLOB                 SIZE     SUPERNODE  NODES  STATE
sha256:aaaaaaaaaaaa  1.0 MiB  100%       2/2    succeeded
sha256:bbbbbbbbbbbb  2.0 MiB  100%       2/2    succeeded
`
	if got := con.Stdout.String(); got != want {
		t.Errorf("printed\n%swant\n%s", got, want)
	}
	if got := con.Stderr.String(); got != "h/r:1: 100%, 9.0 MiB of 9.0 MiB, succeeded\n" {
		t.Errorf("progress %q", got)
	}
}

func TestPartialSuccessIsFailure(t *testing.T) {
	s, con := &supernode{history: [][]cluster.Job{{finished(cluster.Partial)}}}, outputtest.New("")
	err := run(t.Context(), t, s, con, "image", "h/r:1")
	if err == nil || err.Error() != "preheat h/r:1: job 7 succeeded only in part: 1 node failed" {
		t.Errorf("error %v", err)
	}
	const want = `
NODE    BLOB                 STATE   HELD  REASON
node-b  sha256:bbbbbbbbbbbb  failed  50%   disk full
`
	if got := con.Stdout.String(); !strings.HasSuffix(got, want) {
		t.Errorf("printed\n%swant at the end\n%s", got, want)
	}
}

func TestOtherEnds(t *testing.T) {
	for state, want := range map[string]string{
		cluster.Failed: "failed", cluster.Cancelled: "was cancelled", cluster.TimedOut: "run the command again to continue", "odd": "ended as odd",
	} {
		s, con := &supernode{history: [][]cluster.Job{{finished(state)}}}, outputtest.New("")
		err := run(t.Context(), t, s, con, "image", "h/r:1", "-o", "json")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", state, err)
		}
		var job cluster.Job
		if err := json.Unmarshal(con.Stdout.Bytes(), &job); err != nil || job.State != state || con.Stderr.Len() > 0 {
			t.Errorf("JSON %+v, %v, stderr %q", job, err, &con.Stderr)
		}
	}
}

func TestProgressOnATerminal(t *testing.T) {
	s, con := &supernode{history: [][]cluster.Job{{running(), finished(cluster.Succeeded)}}}, outputtest.New("")
	con.Columns, con.Step = 100, time.Second
	if err := run(t.Context(), t, s, con, "image", "h/r:1"); err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(con.Stderr.String(), "\x1b[3A")
	want := "\rsha256:aaaaaaaaaaaa  [============================]  100%  3.0 MiB / 3.0 MiB  succeeded\x1b[K\n" +
		"\rsha256:bbbbbbbbbbbb  [==================>         ]   66%  4.0 MiB / 6.0 MiB\x1b[K\n" +
		"\rtotal  [========================>   ]   88%  8.0 MiB / 9.0 MiB\x1b[K\n\x1b[J"
	if first != want {
		t.Errorf("drew\n%q\nwant\n%q", first, want)
	}
}

func TestLosesTheSupernode(t *testing.T) {
	s, con := &supernode{}, outputtest.New("")
	err := run(t.Context(), t, s, con, "image", "h/r:1")
	if !errors.Is(err, cluster.ErrCut) || !strings.Contains(con.Stderr.String(), "the job goes on; see 'dfctl preheat show 7'") {
		t.Errorf("error %v, stderr %q", err, &con.Stderr)
	}
}

func TestInterrupt(t *testing.T) {
	s, con := &supernode{history: [][]cluster.Job{{running()}}, hang: true}, outputtest.New("")
	ctx, cancel := context.WithCancel(t.Context())
	con.Columns, con.Step = 100, time.Second
	con.OnErr = func(string) { cancel() }
	if err := run(ctx, t, s, con, "image", "h/r:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(con.Stderr.String(), "dfctl preheat cancel 7") {
		t.Errorf("stderr %q", &con.Stderr)
	}
}

func TestJobs(t *testing.T) {
	s, con := &supernode{}, outputtest.New("")
	if err := run(t.Context(), t, s, con, "ls"); err != nil {
		t.Fatal(err)
	}
	const want = "ID  TYPE   SCOPE      STATE    DONE  OBJECT\n7   image  all_peers  partial  88%   h/r:1\n"
	if got := con.Stdout.String(); got != want {
		t.Errorf("printed\n%swant\n%s", got, want)
	}
	con = outputtest.New("")
	if err := run(t.Context(), t, s, con, "show", "7"); err != nil || !strings.Contains(con.Stdout.String(), "disk full") {
		t.Errorf("show: %v, %s", err, &con.Stdout)
	}
	con = outputtest.New("")
	if err := run(t.Context(), t, s, con, "cancel", "7"); err != nil || !s.cancelled || con.Stdout.String() != "job 7: cancelled\n" {
		t.Errorf("cancel: %v, %q", err, &con.Stdout)
	}
	err := run(t.Context(), t, s, con, "show", "8")
	if code, _ := exit.Code(err); code != exit.NotFound {
		t.Errorf("show 8: %v", err)
	}
}

func TestWrongUse(t *testing.T) {
	for args, message := range map[string]string{
		"image":                                  "accepts 1 arg",
		"image r --scope everywhere":             `--scope "everywhere"`,
		"image r --scope all_peers --zone z":     "use only one of",
		"image r --percent 0":                    "--percent 0",
		"image r --percent 101":                  "--percent 101",
		"image r --zone=":                        "--zone is empty",
		"image r --username me":                  "go together",
		"image r --password-stdin":               "go together",
		"image r --username me --password-stdin": "no password",
		"image r --timeout -1s":                  "--timeout -1s",
		"file oci:x":                             `URL "oci:x"`,
		"file https://h/x --platform all":        "unknown flag",
		"show x":                                 `job "x"`,
		"cancel 0":                               `job "0"`,
	} {
		s := &supernode{}
		err := run(t.Context(), t, s, outputtest.New(""), strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("preheat %s: %v, want %q", args, err, message)
		}
		if s.request != nil {
			t.Errorf("preheat %s: the supernode was asked", args)
		}
	}
}

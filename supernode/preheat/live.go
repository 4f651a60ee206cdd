package preheat

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// job is an unfinished job.
type job struct {
	id      int64
	subject subject
	targets []string // nodes, sorted
	cred    origin.Credential
	// lost is set if a secret was given with the request that is not known any
	// more, since the supernode was restarted in between.
	lost    bool
	secret  bool     // a secret was given with the request
	rawURL  string   // with its secrets, if it has any
	safeURL string   // what takes its place in messages
	secrets []string // that must not appear in messages

	mu       sync.Mutex
	snap     Job
	cause    error // why it is to end early
	cancel   context.CancelCauseFunc
	watchers map[chan Job]struct{}
}

// redact notes what is secret in the request.
func (j *job) redact(rawURL string) {
	if safe := origin.RedactURL(rawURL); safe != rawURL {
		j.rawURL, j.safeURL = rawURL, safe
	}
	j.secret = j.rawURL != "" || j.cred != origin.Credential{}
	basic := base64.StdEncoding.EncodeToString([]byte(j.cred.Username + ":" + j.cred.Password))
	for _, s := range []string{j.cred.Authorization, strings.TrimPrefix(j.cred.Authorization, "Bearer "), j.cred.Password, basic} {
		if len(s) >= minSecret {
			j.secrets = append(j.secrets, s)
		}
	}
}

// minSecret keeps a one-letter password from blackening whole messages.
const minSecret = 4

// message returns err's text without the secrets of the request. Package origin
// leaves them out; this is for what others add.
func (j *job) message(err error) string {
	text := err.Error()
	if j.rawURL != "" {
		text = strings.ReplaceAll(text, j.rawURL, j.safeURL)
		if _, query, ok := strings.Cut(j.rawURL, "?"); ok && len(query) >= minSecret {
			text = strings.ReplaceAll(text, query, "REDACTED")
		}
	}
	for _, s := range j.secrets {
		text = strings.ReplaceAll(text, s, "REDACTED")
	}
	var answer *origin.StatusError
	if j.lost && errors.As(err, &answer) && (answer.Status == 401 || answer.Status == 403) {
		text += "; the supernode was restarted and credentials are not kept across a restart: submit the job again"
	}
	const most = 2 << 10
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}

func (j *job) snapshot() Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.snap
}

// publish makes s what everybody sees. A final one ends the watches.
func (j *job) publish(s Job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.snap = s
	for c := range j.watchers {
		select {
		case <-c: // an older one that nobody took
		default:
		}
		c <- s
		if s.State.Final() {
			close(c)
			delete(j.watchers, c)
		}
	}
}

// watch returns false if the job is finished.
func (j *job) watch(ctx context.Context) (<-chan Job, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.snap.State.Final() || j.watchers == nil {
		return nil, false
	}
	c := make(chan Job, 1)
	c <- j.snap
	j.watchers[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if _, ok := j.watchers[c]; ok {
			delete(j.watchers, c)
			close(c)
		}
	})
	return c, true
}

func (j *job) closeWatchers() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for c := range j.watchers {
		close(c)
	}
	j.watchers = nil
}

// stop makes the job end early, now or when it starts.
func (j *job) stop(cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cause == nil {
		j.cause = cause
	}
	if j.cancel != nil {
		j.cancel(j.cause)
	}
}

func (j *job) stopped() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cause
}

// begin returns the context that the job runs in.
func (j *job) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	ctx, stop := context.WithTimeoutCause(ctx, time.Duration(j.snap.Timeout), errTimedOut)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cancel = cancel
	if j.cause != nil {
		cancel(j.cause)
	}
	return ctx, func() { stop(); cancel(nil) }
}

// ended returns the job as finished.
func (j *job) ended(s State, reason string, now time.Time) Job {
	out := j.snapshot()
	now = now.UTC()
	out.State, out.Error, out.FinishedAt = s, reason, &now
	return out
}

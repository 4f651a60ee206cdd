package pieces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/ticket"
)

// Catalog decides which pieces of a store are offered, and to whom.
type Catalog interface {
	// Feed opens the view of task id that holder gets; piecestore.ErrNotFound
	// if there is none.
	Feed(id task.ID, holder string) (Feed, error)
	// Ready returns nil when piece i may be sent. If it is not there yet it
	// waits until ctx ends; with a ctx that has ended it answers at once.
	// ErrNotHeld: it is not there.
	Ready(ctx context.Context, id task.ID, i int) error
}

// Feed is a growing set of pieces.
type Feed interface {
	// Set returns the pieces offered now; the caller may keep it.
	Set() task.Set
	// Changed receives after Set has grown, and is closed when the holder is to
	// ask for a new feed. One receiver.
	Changed() <-chan struct{}
	Close()
}

// ServerOptions configures a Server. Name, Key, Store and Catalog are required.
type ServerOptions struct {
	Name    string             // this node, as tickets name it
	Key     func() ticket.Key  // the current serving key; nil key refuses all
	Store   *piecestore.Store  //
	Catalog Catalog            //
	Log     *slog.Logger       // default: discard
	Now     func() time.Time   // default: time.Now
	Sent    func(bytes int64)  // told of every upload
	Refused func(reason error) // told of every refused ticket

	Slots      int        // uploads at a time; default 64
	MaxWaiting int        // uploads queued beyond that; default 4096
	Rate       rate.Limit // bytes per second in all; default no limit
	HolderRate rate.Limit // bytes per second and holder; default no limit
	KeepAlive  time.Duration
	// MaxWait bounds ?wait=; default 60 s.
	MaxWait time.Duration
	// Stop, when closed, ends feeds, which otherwise outlast a shutdown.
	Stop <-chan struct{}
}

// Server sends pieces to peers. It is an http.Handler.
type Server struct {
	o      ServerOptions
	mux    *http.ServeMux
	gate   *gate
	limits *limits
}

// NewServer returns a handler for the package's protocol.
func NewServer(o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	setDefault(&o.Slots, 64)
	setDefault(&o.MaxWaiting, 4096)
	setDefault(&o.KeepAlive, 15*time.Second)
	setDefault(&o.MaxWait, 60*time.Second)
	s := &Server{o: o, mux: http.NewServeMux(), gate: newGate(o.Slots, o.MaxWaiting), limits: newLimits(o.Rate, o.HolderRate)}
	s.mux.HandleFunc("GET /v1/tasks/{task}/pieces/{n}", s.piece)
	s.mux.HandleFunc("GET /v1/tasks/{task}/haves", s.haves)
	return s
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// ServeHTTP answers one request of a peer.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// admit checks the ticket and answers 400 or 403 if it does not hold.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) (ticket.Ticket, bool) {
	id, err := task.ParseID(r.PathValue("task"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return ticket.Ticket{}, false
	}
	shown := r.Header.Get(HeaderTicket)
	if shown == "" {
		err = errors.New("no ticket in " + HeaderTicket)
	} else {
		var t ticket.Ticket
		if t, err = s.o.Key().Verify(shown, id, s.o.Name, s.o.Now()); err == nil {
			return t, true
		}
	}
	if s.o.Refused != nil {
		s.o.Refused(err)
	}
	s.o.Log.Warn("refused a peer's request", "task", id.Short(), "remote", r.RemoteAddr, "reason", err)
	http.Error(w, err.Error(), http.StatusForbidden)
	return ticket.Ticket{}, false
}

func (s *Server) piece(w http.ResponseWriter, r *http.Request) {
	t, ok := s.admit(w, r)
	if !ok {
		return
	}
	i, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || i < 0 {
		http.Error(w, fmt.Sprintf("piece number %q: want a number from 0", r.PathValue("n")), http.StatusBadRequest)
		return
	}
	prio, err := ParsePriority(r.Header.Get(HeaderPriority))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	wait, err := s.patience(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := s.await(r, t.Task, i, wait); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if err := s.gate.enter(r.Context(), prio); err != nil {
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer s.gate.leave()
	s.send(w, r, t, i)
}

// patience reads how long the request may wait for its piece.
func (s *Server) patience(r *http.Request) (time.Duration, error) {
	v := r.URL.Query().Get("wait")
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("wait %q: want a duration such as 5s", v)
	}
	return min(d, s.o.MaxWait), nil
}

// await returns nil when piece i of id may be sent.
func (s *Server) await(r *http.Request, id task.ID, i int, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	return s.o.Catalog.Ready(ctx, id, i)
}

// send answers with piece i of a task that Catalog allowed.
func (s *Server) send(w http.ResponseWriter, r *http.Request, t ticket.Ticket, i int) {
	st, ok := s.o.Store.Get(t.Task)
	if !ok || i >= st.Table().Count() || !st.Has(i) {
		if ok {
			st.Release()
		}
		http.Error(w, fmt.Sprintf("piece %d of %s is not held", i, t.Task.Short()), http.StatusNotFound)
		return
	}
	defer st.Release()
	f, err := st.OpenPieces(r.Context(), i, i+1)
	if err != nil {
		s.o.Log.Warn("not serving a piece", "task", t.Task.Short(), "piece", i, "error", err)
		http.Error(w, fmt.Sprintf("piece %d of %s is not held", i, t.Task.Short()), http.StatusNotFound)
		return
	}
	defer f.Close() //nolint:errcheck // opened for reading
	off, n := st.Table().Piece(i)
	if err := s.copy(w, r, f, off, n, t.Holder); err != nil && r.Context().Err() == nil {
		s.o.Log.Debug("upload ended early", "task", t.Task.Short(), "piece", i, "to", t.Holder, "error", err)
	}
}

// minUploadRate, in bytes per second, is what a receiver must take to keep its
// upload slot.
const minUploadRate = 64 << 10

// copy sends n bytes of f from off. The plain copy lets the kernel send from
// the page cache.
func (s *Server) copy(w http.ResponseWriter, r *http.Request, f *os.File, off, n int64, holder string) error {
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	rc := http.NewResponseController(w)
	for sent := int64(0); sent < n; {
		m := n - sent
		if s.limits.active() {
			m = min(m, limitedChunk)
			if err := s.limits.wait(r.Context(), holder, int(m)); err != nil {
				return err
			}
		}
		budget := 10*time.Second + time.Duration(m/minUploadRate)*time.Second
		if err := rc.SetWriteDeadline(time.Now().Add(budget)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		got, err := io.CopyN(w, f, m)
		sent += got
		if s.o.Sent != nil {
			s.o.Sent(got)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) haves(w http.ResponseWriter, r *http.Request) {
	t, ok := s.admit(w, r)
	if !ok {
		return
	}
	feed, err := s.o.Catalog.Feed(t.Task, t.Holder)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer feed.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := s.feed(w, r, feed, t.Expires); err != nil && r.Context().Err() == nil {
		s.o.Log.Debug("haves feed ended", "task", t.Task.Short(), "to", t.Holder, "error", err)
	}
}

// errFeedEnded is why a feed ends that its Catalog has ended.
var errFeedEnded = errors.New("the catalog has ended the feed")

// feed sends what feed offers until it, the request or the ticket ends.
func (s *Server) feed(w http.ResponseWriter, r *http.Request, feed Feed, until time.Time) error {
	rc := http.NewResponseController(w)
	tick := time.NewTicker(s.o.KeepAlive)
	defer tick.Stop()
	var sent task.Set
	for buf := []byte(nil); ; buf = buf[:0] {
		set := feed.Set()
		if len(sent) < len(set) {
			sent = append(sent, make(task.Set, len(set)-len(sent))...)
		}
		if buf = appendRuns(buf, set, sent); len(buf) == 0 {
			buf = append(buf, keepAlive...)
		}
		// The kernel's clock, not Options.Now.
		if err := rc.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		if err := rc.Flush(); err != nil {
			return err
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-s.o.Stop:
			return nil
		case _, more := <-feed.Changed():
			if !more {
				return errFeedEnded
			}
		case <-tick.C:
			if !s.o.Now().Before(until) {
				return ticket.ErrExpired
			}
		}
	}
}

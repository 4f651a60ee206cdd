package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/internal/httprange"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// blob serves a blob through the swarm.
func (m *Mirror) blob(c *call) {
	id, ok := c.blobID()
	if !ok {
		m.pass(c) // a digest other than SHA-256: as the registry has it
		return
	}
	req := engine.Request{
		Source:   wire.Source{ID: id, URL: c.url(), Credential: c.cred},
		Priority: pieces.Demand, Authorized: m.isAccepted(c), Whole: c.r.Header.Get("Range") == "",
	}
	h, err := m.open(c, req)
	if err != nil {
		m.failed(c, err)
		return
	}
	if h == nil {
		return // answered
	}
	defer h.Close()
	if err := m.stream(c.r.Context(), c, h); err != nil {
		m.failed(c, err)
	}
}

// open opens a blob once the call's client is known to have the right to it. It
// returns nil when the client has been refused, and answered.
func (m *Mirror) open(c *call, req engine.Request) (*engine.Handle, error) {
	h, err := m.o.Engine.Open(c.r.Context(), req)
	switch {
	case req.Authorized:
		return h, err
	case err == nil: // the registry has let in this very request
		m.accept(c)
		return h, nil
	case errors.Is(err, engine.ErrUnsettled):
		if !m.authorize(c, req.ID) {
			return nil, nil
		}
	case m.isRefusal(c, err) || !m.o.Grants.Covers(c.registry, c.repo, req.ID, c.credKey(), false):
		return nil, err
	}
	req.Authorized = true
	return m.o.Engine.Open(c.r.Context(), req)
}

// isRefusal reports whether err is the registry's no to c, rather than trouble.
func (m *Mirror) isRefusal(c *call, err error) bool {
	var f *engine.Failure
	if !errors.As(err, &f) {
		return false
	}
	m.refused(c, f.Status)
	return f.Status >= 400 && f.Status < 500 && f.Status != http.StatusTooManyRequests
}

// authorize asks the registry whether the call's client may read a blob that is
// here or on its way. If not, the client is answered.
func (m *Mirror) authorize(c *call, id task.ID) bool {
	a, err := m.ask(c, http.MethodHead, c.url())
	switch {
	case err == nil && a.status < 400:
		m.accept(c)
		return true
	case err == nil && a.status < 500 && a.status != http.StatusTooManyRequests:
		a.body = nil
		m.refused(c, a.status)
		if a.status == http.StatusUnauthorized || a.status == http.StatusForbidden {
			m.o.Log.Info("the registry refused a client", "object", c.object(), "status", a.status)
		}
		for name, values := range pick(a.header, headersDown) {
			c.w.Header()[name] = values
		}
		refuse(c.w, a.status, codeOf(a.status), fmt.Sprintf("%s: refused by the registry", c.object()))
		return false
	}
	if m.o.Grants.Covers(c.registry, c.repo, id, c.credKey(), false) {
		return true
	}
	m.withoutRegistry(c, a, err)
	return false
}

// codeOf is the distribution specification's code for a status.
func codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHORIZED"
	case http.StatusForbidden:
		return "DENIED"
	case http.StatusNotFound:
		return "BLOB_UNKNOWN"
	case http.StatusTooManyRequests:
		return "TOOMANYREQUESTS"
	}
	return "UNAVAILABLE"
}

// failed answers for content that cannot be had.
func (m *Mirror) failed(c *call, err error) {
	if c.r.Context().Err() != nil {
		return
	}
	var f *engine.Failure
	status := http.StatusServiceUnavailable
	switch {
	case errors.As(err, &f) && f.Status >= 400 && f.Status < 500:
		status = f.Status
		for name, values := range pick(f.Header, headersDown) {
			c.w.Header()[name] = values
		}
		c.w.Header().Del("Content-Type")
	case errors.As(err, &f) && f.Permanent:
		status = http.StatusBadGateway
	default:
		c.w.Header().Set("Retry-After", "1")
	}
	if errors.Is(err, piecestore.ErrFull) {
		status = http.StatusInsufficientStorage
	}
	m.o.Log.Warn("a blob cannot be served", "object", c.object(), "status", status, "error", err)
	refuse(c.w, status, codeOf(status), fmt.Sprintf("%s: %v", c.object(), err))
}

// stream sends the blob, or the range of it that was asked for. It returns an
// error if nothing was sent, not even a status.
func (m *Mirror) stream(ctx context.Context, c *call, h *engine.Handle) error {
	size := h.Table().Length
	off, n, partial, err := httprange.Parse(c.r.Header.Get("Range"), size)
	hd := c.w.Header()
	hd.Set("Accept-Ranges", "bytes")
	hd.Set("Docker-Content-Digest", c.ref)
	hd.Set("Etag", `"`+c.ref+`"`)
	if err != nil {
		hd.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		refuse(c.w, http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", fmt.Sprintf("%s: %v", c.object(), err))
		return nil
	}
	status := http.StatusOK
	var want []engine.Range // all
	if partial {
		status, want = http.StatusPartialContent, []engine.Range{{Offset: off, Length: n}}
		hd.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size))
	}
	if err := h.Want(want); err != nil {
		return err
	}
	hd.Set("Content-Type", "application/octet-stream")
	hd.Set("Content-Length", strconv.FormatInt(n, 10))
	w := &lateHeader{rec: c.w, status: status}
	_, err = h.Copy(ctx, w, off, n)
	switch {
	case err == nil:
		w.begin()
	case !w.begun && ctx.Err() == nil:
		for _, name := range []string{"Content-Range", "Content-Length", "Etag", "Docker-Content-Digest", "Accept-Ranges"} {
			hd.Del(name)
		}
		return err
	default:
		if !errors.Is(err, context.Canceled) {
			m.o.Log.Warn("a blob was cut off", "object", c.object(), "error", err)
		}
		panic(http.ErrAbortHandler) // the client must not take it for the whole
	}
	return nil
}

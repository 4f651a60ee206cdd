package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// pusher is the sink over a repository of a registry.
type pusher struct {
	*remote
	// whole is set when the registry was found not to take blobs in pieces.
	whole atomic.Bool
}

// errAgain marks an error after which another attempt makes sense although the
// registry's answer looks final.
type errAgain struct{ error }

func (e errAgain) Unwrap() error { return e.error }

// hasBlob implements sink.
func (p *pusher) hasBlob(ctx context.Context, desc v1.Descriptor) (bool, error) {
	obj := origin.Object{URL: origin.BlobURL(p.base, p.repo.RepositoryStr(), desc.Digest.String())}
	info, err := p.client.Head(ctx, obj)
	if se := (*origin.StatusError)(nil); errors.As(err, &se) && se.Status == http.StatusNotFound {
		return false, nil
	}
	if err != nil {
		return false, p.explain("push", "to", err)
	}
	if info.Length >= 0 && info.Length != desc.Size {
		return false, fmt.Errorf("%w: it has %d bytes there, its descriptor says %d", ErrCorrupt, info.Length, desc.Size)
	}
	return true, nil
}

// pushBlob implements sink.
func (p *pusher) pushBlob(ctx context.Context, b Blob) (Pushed, error) {
	has, err := p.hasBlob(ctx, b.Descriptor)
	if err != nil || has {
		return Existed, err
	}
	u := &upload{p: p, b: b, chunked: b.Descriptor.Size > p.opts.ChunkSize && !p.whole.Load()}
	for _, from := range b.MountFrom {
		mounted, err := u.mount(ctx, from)
		if err != nil || mounted {
			return Mounted, err
		}
	}
	if err := p.opts.retry(ctx, p.opts.MaxAttempts, func() (bool, error) { return u.attempt(ctx) }); err != nil {
		return 0, p.explainPush(err)
	}
	if u.gaveUpChunks {
		p.whole.Store(true)
	}
	return Uploaded, nil
}

func (r *remote) explainPush(err error) error {
	err = r.explain("push", "to", err)
	if errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w (if repository %s does not exist, create it first)", err, r.repo.Name())
	}
	return err
}

// upload is the sending of one blob. How far it came is what the registry says;
// distribution up to 2.8 forgets an upload whose connection broke within a
// piece, which then begins again.
type upload struct {
	p *pusher
	b Blob

	location string // of the upload at the registry, "" before it began
	off      int64  // bytes that the registry has
	best     int64  // the most that it ever had
	lost     bool   // what the registry has must be asked for
	chunked  bool   // in pieces, so that it can go on after a failure

	refusedAt    int64 // offset of the last piece that was refused
	gaveUpChunks bool
	forgotten    bool // the registry did not know an upload that it had begun
}

func (p *pusher) uploadsURL(query url.Values) string {
	u := p.url("blobs", "uploads/")
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}

// mount tries to take the blob from another repository. That it cannot be is no
// error: the registry has then begun an upload, which is gone on with.
func (u *upload) mount(ctx context.Context, from string) (bool, error) {
	query := url.Values{"mount": {u.b.Descriptor.Digest.String()}, "from": {from}}
	status := 0
	var h http.Header
	err := u.p.opts.retry(ctx, u.p.opts.MaxAttempts, func() (_ bool, err error) {
		h, status, err = u.p.post(ctx, u.p.uploadsURL(query))
		return false, err
	})
	var se *origin.StatusError
	switch {
	case errors.As(err, &se) && !se.Temporary():
		return false, nil // the upload proper will say if nothing is allowed
	case err != nil:
		return false, err
	case status == http.StatusCreated:
		return true, nil
	}
	u.location, err = u.p.location(h)
	return false, err
}

// attempt sends what the registry lacks and ends the upload.
func (u *upload) attempt(ctx context.Context) (progress bool, err error) {
	best := u.best
	err = u.run(ctx)
	if err != nil && !errors.As(err, new(errPermanent)) {
		u.b.Progress(u.off)
	}
	return u.best > best, err
}

func (u *upload) run(ctx context.Context) error {
	if u.lost {
		done, err := u.find(ctx)
		if err != nil || done {
			return err
		}
	}
	if u.location == "" {
		h, _, err := u.p.post(ctx, u.p.uploadsURL(nil))
		if err != nil {
			return err
		}
		if u.location, err = u.p.location(h); err != nil {
			return err
		}
		u.off = 0
	}
	for u.chunked && u.off < u.b.Descriptor.Size {
		if err := u.patch(ctx); err != nil {
			return u.broken(err)
		}
	}
	return u.put(ctx)
}

// patch sends one piece.
func (u *upload) patch(ctx context.Context) error {
	n := min(u.p.opts.ChunkSize, u.b.Descriptor.Size-u.off)
	body, err := u.b.section(ctx, u.off, n)
	if err != nil {
		return err
	}
	h, err := u.p.send(ctx, http.MethodPatch, u.location, http.Header{
		"Content-Type":  {"application/octet-stream"},
		"Content-Range": {strconv.FormatInt(u.off, 10) + "-" + strconv.FormatInt(u.off+n-1, 10)},
	}, body)
	if err != nil {
		return err
	}
	return u.took(h, u.off+n)
}

// took notes how far the registry says it is, which may be less than was sent.
func (u *upload) took(h http.Header, sent int64) error {
	if h.Get("Location") != "" {
		location, err := u.p.location(h)
		if err != nil {
			return err
		}
		u.location = location
	}
	end, ok := rangeEnd(h)
	switch {
	case !ok:
		end = sent
	case end > sent || end < u.off:
		return errAgain{fmt.Errorf("%w: the registry says that it has %d bytes of the %d sent", ErrCorrupt, end, sent)}
	case end == u.off:
		return errAgain{fmt.Errorf("%w: the registry took nothing of the piece at byte %d", ErrCorrupt, u.off)}
	}
	u.off, u.best = end, max(u.best, end)
	u.b.Progress(u.off)
	return nil
}

// rangeEnd returns how many bytes the Range header of an answer stands for.
// "0-0" may mean one byte or none.
func rangeEnd(h http.Header) (int64, bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(h.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || n < 0 || n == 1<<63-1 {
		return 0, false
	}
	return n + 1, true
}

// broken decides how to go on after a piece was not taken.
func (u *upload) broken(err error) error {
	u.lost = true
	se := (*origin.StatusError)(nil)
	if !errors.As(err, &se) || se.Temporary() {
		return err
	}
	switch {
	case se.Status == http.StatusUnauthorized || se.Status == http.StatusForbidden:
		return err
	case u.off > u.refusedAt:
		// The registry took pieces before. It may be elsewhere now, which it
		// says with 416, or 404 as distribution does: ask, once.
		u.refusedAt = u.off
		return errAgain{err}
	}
	u.giveUpChunks()
	return errAgain{err}
}

// giveUpChunks begins again in one piece, for registries that take no others.
func (u *upload) giveUpChunks() {
	u.restart()
	u.chunked, u.gaveUpChunks = false, true
}

func (u *upload) restart() { u.location, u.off, u.lost = "", 0, false }

// find asks the registry how far it is, or whether it has the blob already.
func (u *upload) find(ctx context.Context) (done bool, err error) {
	if !u.chunked || u.off >= u.b.Descriptor.Size {
		// The answer to the last request may be all that was lost.
		if has, err := u.p.hasBlob(ctx, u.b.Descriptor); err != nil || has {
			return has, err
		}
	}
	if !u.chunked {
		u.restart()
		return false, nil
	}
	h, err := u.p.send(ctx, http.MethodGet, u.location, nil, nil)
	se := (*origin.StatusError)(nil)
	if errors.As(err, &se) && !se.Temporary() && se.Status != http.StatusUnauthorized && se.Status != http.StatusForbidden {
		u.restart() // the registry knows nothing of the upload any more
		return false, nil
	}
	if err != nil {
		return false, err
	}
	end, ok := rangeEnd(h)
	if !ok || end <= 1 || end > u.b.Descriptor.Size {
		u.restart()
		return false, nil
	}
	if h.Get("Location") != "" {
		if u.location, err = u.p.location(h); err != nil {
			return false, err
		}
	}
	u.off, u.best, u.lost = end, max(u.best, end), false
	return false, nil
}

// put ends the upload: with the whole content, or with nothing more.
func (u *upload) put(ctx context.Context) error {
	var body *content
	if !u.chunked {
		var err error
		if body, err = u.b.section(ctx, 0, u.b.Descriptor.Size); err != nil {
			return err
		}
	}
	sep := "?"
	if strings.Contains(u.location, "?") {
		sep = "&"
	}
	to := u.location + sep + "digest=" + url.QueryEscape(u.b.Descriptor.Digest.String())
	_, err := u.p.send(ctx, http.MethodPut, to, http.Header{"Content-Type": {"application/octet-stream"}}, body)
	if err == nil {
		return nil
	}
	u.lost = true
	se := (*origin.StatusError)(nil)
	switch {
	case !errors.As(err, &se) || se.Temporary():
		return err
	case se.Status == http.StatusUnauthorized || se.Status == http.StatusForbidden:
		return err
	case u.chunked:
		// The pieces were put together wrongly, or the upload has timed out.
		u.giveUpChunks()
		return errAgain{err}
	case se.Status == http.StatusNotFound && !u.forgotten:
		u.forgotten = true // once, lest a repository that is not there is asked for ever
		u.restart()
		return errAgain{err}
	case se.Status == http.StatusBadRequest:
		return errPermanent{fmt.Errorf("%w: the registry refuses the content: %w", ErrCorrupt, err)}
	}
	return err
}

// post begins an upload, or mounts.
func (p *pusher) post(ctx context.Context, to string) (http.Header, int, error) {
	return p.sendStatus(ctx, http.MethodPost, to, nil, nil)
}

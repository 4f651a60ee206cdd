package engine

import (
	"context"
	"fmt"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// pending is a request for a URL whose task the supernode is finding out.
type pending struct {
	r        Request
	interest *apiv1.PeerMessage
	done     chan result // 1-buffered
}

type result struct {
	h   *Handle
	err error
}

// openURL finds out which task r.URL is now, and opens it.
func (e *Engine) openURL(ctx context.Context, r Request) (*Handle, error) {
	select {
	case <-e.o.Supernode.Tried():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if up, _ := e.o.Supernode.Connected(); !up {
		return e.openURLAlone(ctx, r)
	}
	p := &pending{r: r, done: make(chan result, 1)}
	e.mu.Lock()
	e.lastRequest++
	number := e.lastRequest
	p.interest = interest(number, r)
	e.pending[number] = p
	e.mu.Unlock()
	e.o.Supernode.Send(p.interest)
	look := time.NewTicker(tickEvery)
	defer look.Stop()
	for {
		select {
		case res := <-p.done:
			return res.h, res.err
		case <-ctx.Done():
			e.withdraw(number, p)
			return nil, fmt.Errorf("opening %s: %w", origin.RedactURL(r.URL), context.Cause(ctx))
		case <-e.ctx.Done():
			e.withdraw(number, p)
			return nil, errStopping
		case <-look.C:
			if up, since := e.o.Supernode.Connected(); !up && e.o.Now().Sub(since) >= e.o.Grace {
				e.withdraw(number, p)
				return e.openURLAlone(ctx, r)
			}
		}
	}
}

// withdraw takes a request back.
func (e *Engine) withdraw(number uint64, p *pending) {
	e.mu.Lock()
	_, waiting := e.pending[number]
	delete(e.pending, number)
	e.mu.Unlock()
	if !waiting { // the answer is on its way
		if res := <-p.done; res.h != nil {
			res.h.Close()
		}
	}
}

// found opens the task that the URL turned out to be. It is called on the
// stream's goroutine, so that the messages about the task that follow find its
// download.
func (p *pending) found(e *Engine, info *apiv1.TaskInfo) {
	id, err := task.ParseID(info.TaskId)
	if err != nil {
		p.done <- result{err: fmt.Errorf("the supernode's answer for %s: %w", origin.RedactURL(p.r.URL), err)}
		return
	}
	r := p.r
	r.ID = id
	r.Authorized = true // by the answer to this very request
	if h := e.local(r); h != nil {
		h.meta = metaOf(info)
		e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Leave{Leave: &apiv1.Leave{TaskId: info.TaskId}}})
		p.done <- result{h: h}
		return
	}
	d, err := e.use(r)
	if err != nil {
		p.done <- result{err: err}
		return
	}
	d.post(func() { d.setInfo(info) })
	e.wg.Go(func() {
		<-d.ready
		h := &Handle{e: e, r: r, d: d, meta: metaOf(info)}
		if h.t, err = d.task(); err != nil {
			h.Close()
			h = nil
		}
		p.done <- result{h: h, err: err}
	})
}

// openURLAlone asks the origin itself what r.URL is.
func (e *Engine) openURLAlone(ctx context.Context, r Request) (*Handle, error) {
	info, err := e.o.Origin.Head(ctx, origin.Object{URL: r.URL, Header: r.Header, Credentials: []origin.Credential{r.Credential}})
	if err != nil {
		return nil, originFailure(r.ID, err)
	}
	etag := info.ETag
	if etag == "" && info.LastModified == "" {
		etag = fmt.Sprintf("fetched %d", e.o.Now().UnixNano())
	}
	r.ID = task.URLID(r.URL, etag, info.LastModified, info.Length)
	r.Authorized = true // by the origin's answer
	h := e.local(r)
	if h == nil {
		if h, err = e.join(ctx, r); err != nil {
			return nil, err
		}
	}
	h.setMeta(Meta{ContentType: info.ContentType, ETag: info.ETag, LastModified: info.LastModified})
	return h, nil
}

// interest is the message that asks to take part in r.
func interest(number uint64, r Request) *apiv1.PeerMessage {
	m := &apiv1.Interest{
		Request: number, Source: wire.FromSource(r.Source), Whole: r.Whole, Authorized: r.Authorized,
		Priority: apiv1.Priority(r.Priority), Command: r.command, // #nosec G115 -- three values
	}
	for _, rg := range r.Ranges {
		m.Ranges = append(m.Ranges, &apiv1.Range{Offset: rg.Offset, Length: rg.Length})
	}
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Interest{Interest: m}}
}

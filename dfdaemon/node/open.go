package node

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/authority"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// use opens what a message names and gives it to f, again if the origin refuses
// a credential while f runs and there is another. The error has a gRPC code.
func (s *Service) use(ctx context.Context, id string, src *apiv1.Source, req engine.Request, f func(*engine.Handle) error) error {
	if err := fillIn(&req, id, src); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	repo, ok, err := s.repository(&req)
	if err == nil && ok {
		err = s.o.Authority.Try(ctx, repo, req.ID, func(at authority.Attempt) error {
			h, err := s.o.Authority.Open(ctx, s.o.Engine, at, req)
			return with(h, err, f)
		})
	} else if err == nil {
		h, openErr := s.open(ctx, req)
		err = with(h, openErr, f)
	}
	if err != nil {
		return toStatus(err)
	}
	return nil
}

// with gives h to f and closes it, unless err says that there is none.
func with(h *engine.Handle, err error, f func(*engine.Handle) error) error {
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

// fillIn sets what a message says of the content.
func fillIn(req *engine.Request, id string, src *apiv1.Source) error {
	if src != nil {
		source, err := wire.Request(src)
		if err != nil {
			return err
		}
		req.Source = source
	}
	if id != "" {
		parsed, err := task.ParseID(id)
		if err != nil {
			return err
		}
		req.ID = parsed
	}
	return nil
}

// repository returns the repository of a registry's blob that is to be read by
// the node's own authority, and false for other content. The blob's digest names
// its task.
func (s *Service) repository(req *engine.Request) (repo authority.Repository, ok bool, err error) {
	u, err := url.Parse(req.URL)
	if s.o.Authority == nil || err != nil || u.Scheme != "https" || u.RawQuery != "" || req.Credential != (origin.Credential{}) || len(req.Header) > 0 {
		return repo, false, nil //nolint:nilerr // wire.Request has checked the URL, if there is one
	}
	path, isRegistry := strings.CutPrefix(u.Path, "/v2/")
	at := strings.LastIndex(path, "/blobs/") // a repository may have the word in its name
	if !isRegistry || at <= 0 {
		return repo, false, nil
	}
	name, digest := path[:at], path[at+len("/blobs/"):]
	id, err := task.ParseID(digest)
	if _, known := id.Digest(); err != nil || !known {
		return repo, false, status.Errorf(codes.InvalidArgument, "blob %q: want sha256:<hex>", digest)
	}
	if req.ID != "" && req.ID != id {
		return repo, false, status.Errorf(codes.InvalidArgument, "the URL is of %s, and the task is %s", id, req.ID)
	}
	req.ID = id
	repo, err = s.o.Authority.Repository(u.Host, name)
	return repo, err == nil, err
}

// open opens other content. A task without a URL must be in the store.
func (s *Service) open(ctx context.Context, r engine.Request) (*engine.Handle, error) {
	if r.URL == "" {
		t, ok := s.o.Store.Get(r.ID)
		if !ok {
			return nil, status.Errorf(codes.NotFound, "%s is not on this node, and no URL says where it is", r.ID)
		}
		complete := t.Complete()
		r.URL = t.Source()
		t.Release()
		if !complete && r.URL == "" {
			return nil, status.Errorf(codes.NotFound, "%s is not complete on this node, and no URL says where the rest is", r.ID)
		}
		r.Authorized = complete
	}
	h, err := s.o.Engine.Open(ctx, r)
	if errors.Is(err, engine.ErrUnsettled) {
		r.Authorized = true // the socket's users may read what the node holds
		h, err = s.o.Engine.Open(ctx, r)
	}
	return h, err
}

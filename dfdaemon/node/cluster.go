package node

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/swarm"
)

// Swarm is what the service asks of the link to the supernode.
type Swarm interface {
	Connected() (bool, time.Time)
	// TrustKeys are the PEM public keys that the supernode vouches for images
	// with: those of the last one that was connected.
	TrustKeys() [][]byte
	ReportAccess(context.Context, *apiv1.ReportAccessRequest) (*apiv1.ReportAccessResponse, error)
	Profile(context.Context, *apiv1.ProfileRequest) (*apiv1.ProfileResponse, error)
}

// Info tells what the daemon is.
func (s *Service) Info(context.Context, *apiv1.InfoRequest) (*apiv1.InfoResponse, error) {
	info := &apiv1.InfoResponse{Version: s.o.Info.GetVersion(), Name: s.o.Info.GetName(), HttpSocket: s.o.Info.GetHttpSocket()}
	if s.o.Swarm != nil {
		info.Connected, _ = s.o.Swarm.Connected()
		info.TrustKeys = s.o.Swarm.TrustKeys()
	}
	return info, nil
}

// errAlone is the answer to what only a supernode knows.
var errAlone = status.Error(codes.Unavailable, swarm.ErrUnreachable.Error())

// ReportAccess passes a report on.
func (s *Service) ReportAccess(ctx context.Context, r *apiv1.ReportAccessRequest) (*apiv1.ReportAccessResponse, error) {
	if s.o.Swarm == nil {
		return nil, errAlone
	}
	resp, err := s.o.Swarm.ReportAccess(ctx, r)
	return resp, passOn(err)
}

// Profile asks for an image's profile.
func (s *Service) Profile(ctx context.Context, r *apiv1.ProfileRequest) (*apiv1.ProfileResponse, error) {
	if s.o.Swarm == nil {
		return nil, errAlone
	}
	resp, err := s.o.Swarm.Profile(ctx, r)
	return resp, passOn(err)
}

// passOn gives the supernode's error to the caller with its code.
func passOn(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, swarm.ErrUnreachable):
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(status.Code(err), err.Error())
}

package supernode

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/exchange"
	"github.com/damselfly-io/damselfly/supernode/profile"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// swarmService is the gRPC face of the tracker, the exchanger and the profiles.
type swarmService struct {
	apiv1.UnimplementedSwarmServer
	tracker  *tracker.Tracker
	exchange *exchange.Exchanger
	profiles *profile.Store
}

// Connect serves one daemon's stream.
func (s *swarmService) Connect(stream apiv1.Swarm_ConnectServer) error {
	return s.tracker.Connect(stream)
}

// Exchange performs one small registry request.
func (s *swarmService) Exchange(ctx context.Context, r *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error) {
	answer, err := s.exchange.Do(ctx, r.Method, r.Url, wire.Header(r.Headers))
	switch {
	case errors.Is(err, exchange.ErrTooLarge):
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, status.FromContextError(err).Err()
	case err != nil:
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &apiv1.ExchangeResponse{
		Status:  int32(answer.Status), // #nosec G115 -- an HTTP status
		Headers: wire.FromHeader(answer.Header), Body: answer.Body,
	}, nil
}

// ReportAccess takes what one mount of an image has read.
func (s *swarmService) ReportAccess(_ context.Context, r *apiv1.ReportAccessRequest) (*apiv1.ReportAccessResponse, error) {
	if len(r.Accesses) > profile.MaxAccesses {
		return nil, status.Errorf(codes.InvalidArgument, "%d accesses, at most %d", len(r.Accesses), profile.MaxAccesses)
	}
	report := make([]profile.Access, 0, len(r.Accesses))
	for _, a := range r.Accesses {
		id, err := task.ParseID(a.Blob)
		blob, ok := id.Digest()
		if err != nil || !ok {
			return nil, status.Errorf(codes.InvalidArgument, "blob %.100q: want sha256:<hex>", a.Blob)
		}
		report = append(report, profile.Access{Blob: blob, Group: a.Group})
	}
	if err := s.profiles.Report(r.Image, report); err != nil {
		return nil, profileStatus(err)
	}
	return &apiv1.ReportAccessResponse{}, nil
}

// Profile tells in which order mounts of an image read.
func (s *swarmService) Profile(_ context.Context, r *apiv1.ProfileRequest) (*apiv1.ProfileResponse, error) {
	accesses, reports, err := s.profiles.Profile(r.Image)
	if err != nil {
		return nil, profileStatus(err)
	}
	resp := &apiv1.ProfileResponse{Reports: uint32(reports)} // #nosec G115 -- a few
	for _, a := range accesses {
		resp.Accesses = append(resp.Accesses, &apiv1.Access{Blob: string(task.BlobID(a.Blob)), Group: a.Group})
	}
	return resp, nil
}

func profileStatus(err error) error {
	code := codes.Internal
	if errors.Is(err, profile.ErrInvalid) {
		code = codes.InvalidArgument
	}
	return status.Error(code, err.Error())
}

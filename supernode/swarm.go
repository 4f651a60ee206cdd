package supernode

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/exchange"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// swarmService is the gRPC face of the tracker and the exchanger.
type swarmService struct {
	apiv1.UnimplementedSwarmServer
	tracker  *tracker.Tracker
	exchange *exchange.Exchanger
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

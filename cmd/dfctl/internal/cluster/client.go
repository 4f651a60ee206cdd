package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
)

const (
	// DefaultAddress is where a supernode on the same machine listens.
	DefaultAddress = "127.0.0.1:8001"
	// EnvAddress names the environment variable with the address.
	EnvAddress = "DAMSELFLY_SUPERNODE"
	// EnvTokenFile names the environment variable with the token's file.
	EnvTokenFile = "DAMSELFLY_TOKEN_FILE" //nolint:gosec // the name of a variable, not a credential

	// A preheat of many blobs on ten thousand nodes is the largest document.
	maxDocument = 256 << 20
	maxToken    = 64 << 10
	// Until the header of an answer; events then come at any time.
	answerTimeout = 30 * time.Second
)

// Target says where the supernode is and how to be let in.
type Target struct{ Address, TokenFile string }

// AddFlags adds --supernode and --token-file to a command and its subcommands.
func (t *Target) AddFlags(fs *pflag.FlagSet, getenv func(string) string) {
	t.Address = DefaultAddress
	if s := getenv(EnvAddress); s != "" {
		t.Address = s
	}
	fs.StringVar(&t.Address, "supernode", t.Address, "`HOST:PORT` of the supernode's HTTP API; also "+EnvAddress)
	fs.StringVar(&t.TokenFile, "token-file", getenv(EnvTokenFile), "`FILE` with the management token; also "+EnvTokenFile)
}

// Client calls the API.
type Client struct {
	base  string // URL without a trailing slash
	token string
	http  *http.Client
}

// Client checks the target and reads the token. It connects to nothing.
func (t Target) Client() (*Client, error) {
	base := t.Address
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, cli.Usagef("--supernode %q: use HOST:PORT, or https://HOST:PORT", t.Address)
	}
	c := &Client{base: u.Scheme + "://" + u.Host}
	if t.TokenFile != "" {
		if c.token, err = readToken(t.TokenFile); err != nil {
			return nil, err
		}
	}
	c.http = &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: answerTimeout},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the management token: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxToken))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("read the management token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("read the management token: %s does not hold one token on one line", path)
	}
	return token, nil
}

// call sends in, unless nil, as JSON and decodes the answer into out, unless
// nil. Doing begins the error message.
func (c *Client) call(ctx context.Context, doing, method, path string, in, out any) error {
	resp, err := c.send(ctx, doing, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDocument)).Decode(out); err != nil {
		return c.explain(ctx, doing, fmt.Errorf("read its answer: %w", err))
	}
	return nil
}

// send returns the answer if its status is one of success.
func (c *Client) send(ctx context.Context, doing, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s: encode the request: %w", doing, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, doing, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, c.refusal(doing, resp)
	}
	return resp, nil
}

// explain says what it means that there was no answer.
func (c *Client) explain(ctx context.Context, doing string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: no supernode listens at %s; start it, or name its HTTP address by --supernode or %s", doing, c.base, EnvAddress)
	}
	// The URL of a *url.Error is in the message already.
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return fmt.Errorf("%s: the supernode at %s: %w", doing, c.base, err)
}

// APIError is a refusal by the supernode.
type APIError struct {
	Status  int
	Code    string // "" if the answer was not the API's
	Message string
}

func (e *APIError) Error() string { return e.Message }

// refusal reads the error document of an answer.
func (c *Client) refusal(doing string, resp *http.Response) error {
	const maxError = 64 << 10
	var doc struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	err := json.NewDecoder(io.LimitReader(resp.Body, maxError)).Decode(&doc)
	refusal := &APIError{Status: resp.StatusCode, Code: doc.Error.Code, Message: output.Clean(doc.Error.Message)}
	if err != nil || refusal.Message == "" {
		refusal.Message = fmt.Sprintf("%s answered %s; is it the HTTP address of a supernode?", c.base, output.Clean(resp.Status))
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return exit.With(exit.Refused, fmt.Errorf("%s: %w; give the management token by --token-file or %s", doing, refusal, EnvTokenFile))
	case http.StatusForbidden:
		return exit.With(exit.Refused, fmt.Errorf("%s: %w", doing, refusal))
	case http.StatusNotFound:
		return exit.With(exit.NotFound, fmt.Errorf("%s: %w", doing, refusal))
	}
	return fmt.Errorf("%s: %w", doing, refusal)
}

/** The server refused a frame, or did not answer in time. */
export class SocketError extends Error {
  override readonly name = "SocketError";

  constructor(
    /** An error code of the protocol, or `timeout`, `closed`, `queue_full`, `too_large`, `token`, `url`. */
    readonly code: string,
    message: string,
    /** Seconds to wait before another attempt, if the server sent them. */
    readonly retryAfter?: number,
    options?: { cause: unknown },
  ) {
    super(message, options);
  }
}

/** An error of the page's functions, without its own text, which may quote a token. */
export function failure(cause: unknown): SocketError {
  return cause instanceof SocketError ? cause : new SocketError("token", "getToken() or url() failed", undefined, { cause });
}

/** The error of what is not sent, or not answered, because the connection ended. */
export function closed(): SocketError {
  return new SocketError("closed", "there is no connection");
}

"""The desk's HTTP API, and the page that uses it. Clients write here, never over the socket."""

from __future__ import annotations

import os
import re
from typing import Any, cast

from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.db.models import BigIntegerField
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe
from rest_framework import serializers, status
from rest_framework.parsers import JSONParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import AuthenticationFailed
from rest_framework_simplejwt.tokens import Token
from rest_framework_simplejwt.views import TokenRefreshView

from demo import desk
from demo.models import Conversation, Status
from realtime.web.token_claims import LoginView, RefreshSerializer, TokenSerializer


class DeskTokenSerializer(TokenSerializer):
    """Adds `threads`: customers may enter their own chats, even when Redis has lost the grants."""

    @classmethod
    def get_token(cls, user: Any) -> Token:
        token = super().get_token(user)
        if token["role"] == "customer":
            threads = Conversation.objects.filter(customer=user, status=Status.OPEN)
            token["threads"] = [str(pk) for pk in threads.values_list("pk", flat=True)]
        return token


class DeskRefreshSerializer(RefreshSerializer):
    """Renews a token with the same claims."""

    obtain_serializer = DeskTokenSerializer


class DeskTokenView(LoginView):
    """Exchanges user name and password for a token for this API and the socket."""

    # Not in SIMPLE_JWT: the project's settings do not depend on the demo.
    _serializer_class = f"{__name__}.DeskTokenSerializer"


class DeskRefreshView(TokenRefreshView):
    """Exchanges a refresh token for a new pair."""

    _serializer_class = f"{__name__}.DeskRefreshSerializer"


class DeskAuthentication(JWTAuthentication):
    """Accepts the socket's token as the bearer token."""

    def get_user(self, validated_token: Token) -> Any:
        try:
            return super().get_user(validated_token)
        except (
            ValueError,
            OverflowError,
        ) as error:  # `issuetoken --user x`: valid for a socket, but not a user of the demo
            raise AuthenticationFailed("User not found", code="user_not_found") from error


class DeskView(APIView):
    """Takes and returns JSON, and requires a token."""

    authentication_classes = [DeskAuthentication]
    permission_classes = [IsAuthenticated]
    parser_classes = [JSONParser]
    renderer_classes = [JSONRenderer]

    @property
    def user(self) -> User:
        """The user who makes the request."""
        return cast(User, self.request.user)

    def conversation(self, pk: int) -> Conversation:
        """The conversation; 404 also for one that the user may not see, so that its existence stays private."""
        visible = Conversation.objects.visible_to(self.user).select_related("customer", "attendant")
        try:
            return get_object_or_404(visible, pk=pk)
        except OverflowError as error:  # Django 4.2 asks SQLite for any number
            raise Http404 from error


class ConversationInput(serializers.Serializer[Any]):
    """A new chat."""

    topic = serializers.CharField(max_length=200)


class MessageInput(serializers.Serializer[Any]):
    """A new message."""

    body = serializers.CharField(max_length=4000)


class TransferInput(serializers.Serializer[Any]):
    """The colleague who gets the chat."""

    attendant_id = serializers.IntegerField(min_value=1, max_value=BigIntegerField.MAX_BIGINT)

    def validate_attendant_id(self, value: int) -> User:
        """The colleague of that id."""
        if (colleague := User.objects.filter(pk=value, is_active=True).first()) is None:
            raise serializers.ValidationError("There is no such user.")
        return colleague


class ConversationsView(DeskView):
    """The queue and the attendant's own chats; for a customer the chat that they opened."""

    def get(self, request: Request) -> Response:
        current = Conversation.objects.current_for(self.user).select_related("customer", "attendant")
        return Response({"conversations": [conversation.as_data() for conversation in current]})

    def post(self, request: Request) -> Response:
        data = ConversationInput(data=request.data)
        data.is_valid(raise_exception=True)
        conversation = desk.open_chat(self.user, data.validated_data["topic"])
        return Response(conversation.as_data(), status=status.HTTP_201_CREATED)


class ConversationView(DeskView):
    """A conversation with its messages, which a client fetches first, and again after a gap."""

    def get(self, request: Request, pk: int) -> Response:
        conversation = self.conversation(pk)
        messages = conversation.messages.select_related("author")
        return Response({**conversation.as_data(), "messages": [message.as_data() for message in messages]})


class MessagesView(DeskView):
    """Writes a message."""

    def post(self, request: Request, pk: int) -> Response:
        data = MessageInput(data=request.data)
        data.is_valid(raise_exception=True)
        message = desk.write(self.conversation(pk), self.user, data.validated_data["body"])
        return Response(message.as_data(), status=status.HTTP_201_CREATED)


class TakeView(DeskView):
    """Takes a chat out of the queue."""

    def post(self, request: Request, pk: int) -> Response:
        conversation = self.conversation(pk)
        desk.take(conversation, self.user)
        return Response(conversation.as_data())


class TransferView(DeskView):
    """Hands a chat to a colleague."""

    def post(self, request: Request, pk: int) -> Response:
        conversation = self.conversation(pk)
        data = TransferInput(data=request.data)
        data.is_valid(raise_exception=True)
        desk.transfer(conversation, self.user, data.validated_data["attendant_id"])
        return Response(conversation.as_data())


class EndView(DeskView):
    """Ends a chat."""

    def post(self, request: Request, pk: int) -> Response:
        conversation = self.conversation(pk)
        desk.end(conversation, self.user)
        return Response(conversation.as_data())


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """An attendant and a customer side by side; before `make desk` a hint to run it."""
    sockets = sockets_url(request)
    built = finders.find("demo/desk.js") is not None
    response = render(request, "demo/index.html", {"sockets_url": sockets, "built": built})
    # The page shows text of other users. If a bug let markup through, it would still not run.
    response["Content-Security-Policy"] = (
        f"default-src 'self'; img-src 'self' data:; connect-src 'self' {sockets} {sockets.replace('ws', 'http', 1)}"
    )
    return response


def sockets_url(request: HttpRequest) -> str:
    """The socket server's address for the browser: `SOCKETS_PUBLIC_URL`, or this page's host with `SOCKETS_PORT`."""
    if url := os.environ.get("SOCKETS_PUBLIC_URL"):
        return url.rstrip("/")
    host = re.sub(r":\d+$", "", request.get_host())
    port = os.environ.get("SOCKETS_PORT") or "8001"
    return f"{'wss' if request.is_secure() else 'ws'}://{host}:{port}"

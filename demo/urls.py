"""The demo's page and its API."""

from __future__ import annotations

from django.urls import path

from demo import views

urlpatterns = [
    path("", views.page, name="demo"),
    path("demo/token/", views.DeskTokenView.as_view()),
    path("demo/token/refresh/", views.DeskRefreshView.as_view()),
    path("demo/conversations/", views.ConversationsView.as_view()),
    path("demo/conversations/<int:pk>/", views.ConversationView.as_view()),
    path("demo/conversations/<int:pk>/messages/", views.MessagesView.as_view()),
    path("demo/conversations/<int:pk>/take/", views.TakeView.as_view()),
    path("demo/conversations/<int:pk>/transfer/", views.TransferView.as_view()),
    path("demo/conversations/<int:pk>/end/", views.EndView.as_view()),
]
